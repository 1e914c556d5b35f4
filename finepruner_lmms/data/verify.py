"""Checks of tables: all shards there, readable, with the rows and columns that a benchmark needs.

Only the footers of parquet files are read, so that this takes milliseconds whatever the size.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import Table
from finepruner_lmms.errors import first_line

if TYPE_CHECKING:
    import pyarrow as pa

_SHARD = re.compile(r"(\d{5})-of-(\d{5})")


def check_shards(names: Sequence[str], what: str) -> None:
    """Raise `DataError` unless the numbered files of a table are all there, each once.

    Repositories have held two uploads of the same shards at once; reading both would ask every question twice.
    """
    found = [(name, match) for name in names if (match := _SHARD.search(Path(name).name))]
    if len(found) != len(names):  # not numbered, so there is nothing to compare with
        if found and len(names) > 1:
            raise DataError(
                what, f"numbered and other files together: {', '.join(sorted(names))}", fix="remove what is old"
            )
        return
    totals = {int(match[2]) for _, match in found}
    numbers = sorted(int(match[1]) for _, match in found)
    if len(totals) != 1 or numbers != list(range(next(iter(totals)))):
        total = max(totals)
        missing = [f"{n:05d}" for n in range(total) if n not in numbers]
        twice = sorted({f"{n:05d}" for n in numbers if numbers.count(n) > 1})
        problems = [f"{text} {', '.join(some)}" for text, some in (("missing:", missing), ("twice:", twice)) if some]
        raise DataError(what, f"the shards do not add up to one set of {total}: {'; '.join(problems) or names}")


def footer(path: Path) -> tuple[int, pa.Schema]:
    """Rows and schema of a parquet file. `DataError` if it is not one, or was cut off."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("data", f"{path} is not a readable parquet file: {first_line(error)}") from error


def check_columns(path: Path, schema: pa.Schema, table: Table) -> None:
    """Raise `DataError` naming the columns that are missing or of another kind."""
    marked, wrong = _marked_images(schema), []
    for name, kind in table.columns.items():
        if name not in schema.names:
            wrong.append(f"{name} is missing")
        elif not _is(found := schema.field(name).type, kind):
            wrong.append(f"{name} is {found}, not {kind}{_LACKING.get(kind, '')}")
        elif kind == "image" and name not in marked:
            wrong.append(f"{name} is a plain structure that the file does not say is an image")
    if wrong:
        problem = f"{path}: {', '.join(wrong)}; it has the columns {', '.join(schema.names)}"
        fix = "write it with `datasets`, images as a column of `datasets.Image`" if "image" in problem else ""
        raise DataError("data", problem, fix=fix)


_LACKING = {"annotators": " (structures with answer and answer_id, by which lmms-eval tells them apart)"}


def _marked_images(schema: pa.Schema) -> set[str]:
    """The columns that a file written by `datasets` says are images; it reads all others as they are stored."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "Image"}
    except (KeyError, TypeError, AttributeError, ValueError):  # no such note, or somebody else's
        return set()


def _is(kind: Any, wanted: str) -> bool:
    import pyarrow.types as t

    match wanted:
        case "text":  # a column of nothing but missing values has the type null
            return t.is_string(kind) or t.is_large_string(kind) or t.is_null(kind)
        case "number":
            return t.is_integer(kind) or t.is_floating(kind)
        case "texts":
            return (t.is_list(kind) or t.is_large_list(kind)) and _is(kind.value_type, "text")
        case "annotators":
            fields = kind.value_type if t.is_list(kind) or t.is_large_list(kind) else None
            return fields is not None and t.is_struct(fields) and _has(fields, "answer") and _has(fields, "answer_id")
        case "image":
            return t.is_struct(kind) and _has(kind, "bytes")
    return True


def _has(kind: Any, name: str) -> bool:
    return bool(kind.get_field_index(name) >= 0)


def check_table(paths: Sequence[Path], table: Table, what: str) -> dict[Path, int]:
    """Rows of each file of a table, after checking shards and columns."""
    if not paths:
        raise DataError(what, f"no files like {table.files}")
    check_shards([path.name for path in paths], what)
    rows = {}
    for path in paths:
        rows[path], schema = footer(path)
        check_columns(path, schema, table)
    return rows


def check_rows(found: int, table: Table, what: str, source: str) -> None:
    """Raise `DataError` where a table has another number of rows than is known."""
    if table.rows is not None and found != table.rows:
        raise DataError(
            what,
            f"{found:,} rows, but {table.rows:,} expected (from: {source})",
            fix="if they are right, say --accept-rows",
        )


def lacking_weights(folder: Path) -> list[str]:
    """The weight files that a checkpoint's index names and that are not there. `DataError` if it cannot be read."""
    lacking = []
    for index in sorted(folder.glob("*.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise DataError(
                "checkpoint", f"{index} is not an index of weights: {type(error).__name__}: {error}"
            ) from error
        lacking += sorted(name for name in named if not (folder / name).is_file())
    return lacking


def first_image(path: Path, column: str) -> tuple[int, int]:
    """Width and height of the first row's image, decoded. `DataError` if there is none or it cannot be decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image, UnidentifiedImageError

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            batch = next(file.iter_batches(batch_size=1, columns=[column]), None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("data", f"{path}: {column!r} cannot be read: {first_line(error)}") from error
    value = batch.column(0)[0].as_py() if batch is not None and batch.num_rows else None
    if value is None or value["bytes"] is None:
        raise DataError("data", f"{path}: the first row has no image in {column!r}")
    try:
        with Image.open(io.BytesIO(value["bytes"])) as image:
            image.load()
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise DataError("data", f"{path}: the first image in {column!r} cannot be decoded: {error}") from error
