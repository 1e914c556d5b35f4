"""Checks of what is in the tables, beyond their form: what would stop a run in its middle, or give a wrong score.

Where the footer of a parquet file counts missing values nothing else is read; image columns never are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import Table
from finepruner_lmms.errors import first_line


def content_problems(table: Table, paths: Sequence[Path]) -> Iterator[DataError]:
    """What is wrong in the files of one table, whose columns are of the right kinds."""
    for path in paths:
        yield from _missing_values(path, table)
        for column, kind in table.columns.items():
            if kind == "annotators":
                yield from _annotators(path, column)


def image_problems(questions: Sequence[Path], images: Sequence[Path]) -> Iterator[DataError]:
    """GQA: the images that questions name and that are not in the table of images."""
    known = {name for path in images for name in _column(path, "id").to_pylist()}
    named = {name for path in questions for name in _column(path, "imageId").to_pylist()}
    if lacking := sorted(map(str, named - known)):
        problem = f"{len(lacking)} of the {len(named)} images that questions name are missing, such as {lacking[0]!r}"
        fix = "take both tables from one release, testdev_balanced_instructions and testdev_balanced_images"
        yield DataError("data", f"{images[0].parent}: {problem}", fix=fix)


def _missing_values(path: Path, table: Table) -> Iterator[DataError]:
    """Questions without an image, answers or OCR tokens that are null, and the like."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows, leaves = file.metadata.num_rows, _null_counts(file)
    for column, kind in table.columns.items():
        if column in table.may_lack:
            continue
        if kind == "image":
            if count := leaves[f"{column}.bytes"]:
                problem = f"{count:,} of {rows:,} rows hold no image in {column!r}"
                fix = "leave out questions without an image, and store pictures as bytes, not as paths"
                yield DataError("data", f"{path}: {problem}", fix=fix)
        elif _may_have_null(leaves, column) and (count := _rows_with_null(path, column)):
            problem = f"{count:,} of {rows:,} rows have a missing value (null) in {column!r}"
            fix = "an empty list where there is none" if kind == "texts" else "leave these rows out"
            yield DataError("data", f"{path}: {problem}", fix=fix)


def _may_have_null(leaves: Mapping[str, int | None], column: str) -> bool:
    """Whether the footer counts missing values, of which an empty list is one, or does not say."""
    return any(count != 0 for leaf, count in leaves.items() if leaf == column or leaf.startswith(f"{column}."))


def _null_counts(file: Any) -> dict[str, int | None]:
    """The missing values of each leaf, such as `image.bytes`, by the footer; None where it does not say."""
    metadata = file.metadata
    counts: dict[str, int | None] = {}
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            leaf = metadata.row_group(group).column(number)
            statistics = leaf.statistics
            known = statistics.null_count if statistics is not None and statistics.has_null_count else None
            before = counts.get(leaf.path_in_schema, 0)
            counts[leaf.path_in_schema] = None if known is None or before is None else before + known
    return counts


def _rows_with_null(path: Path, column: str) -> int:
    """Rows whose value is null, or a list with a null in it."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.types as t

    values = _column(path, column)
    missing = np.asarray(pc.is_null(values))
    if t.is_list(values.type) or t.is_large_list(values.type):
        elements = np.asarray(pc.is_null(pc.list_flatten(values)))
        missing[np.asarray(pc.list_parent_indices(values))[elements]] = True
    return int(missing.sum())


def _annotators(path: Path, column: str) -> Iterator[DataError]:
    """VQAv2: lmms-eval takes two equal structures for one annotator, so that agreement would count as none."""
    import numpy as np
    import pyarrow.compute as pc

    answers = _column(path, column)
    ids = pc.struct_field(pc.list_flatten(answers), "answer_id")
    rows = np.asarray(pc.list_parent_indices(answers))
    _, numbers = np.unique(np.asarray(ids.cast("string").fill_null(""), dtype=str), return_inverse=True)
    pairs = rows.astype(np.int64) * (numbers.max(initial=0) + 1) + numbers
    alike = len(pairs) - len(np.unique(pairs))
    if alike:
        problem = f"{alike:,} of {len(pairs):,} entries of {column!r} have the answer_id of another one of their row"
        yield DataError("data", f"{path}: {problem}", fix="number the annotators of each question")


def _column(path: Path, column: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=[column])[column].combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError("data", f"{path}: {column!r} cannot be read: {first_line(error)}") from error
