"""Cells and samples as CSV and as Parquet: two files, `cells` and `samples`, the latter with a row per question."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from finepruner_lmms.matrix.export.study import Exported
from finepruner_lmms.matrix.export.tables import (
    CELL_COLUMNS,
    NAMES,
    SAMPLE_COLUMNS,
    Values,
    arrow_table,
    cell_rows,
    names_of,
    sample_rows,
    schema,
)
from finepruner_lmms.output import csv_cell

_NAMED = dict.fromkeys(NAMES, "string") | SAMPLE_COLUMNS


def write_csv(source: Exported, folder: Path) -> list[Path]:
    """`cells.csv` and `samples.csv`. A text that a spreadsheet would run as a formula gets a `'` before it."""

    def write(columns: dict[str, str], rows: Iterator[Values]) -> Callable[[IO[bytes]], None]:
        def into(file: IO[bytes]) -> None:
            import io

            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow([_plain(csv_cell(row[name])) for name in columns])
            text.detach()

        return into

    cells = iter(cell_rows(source.store, source.study, source.states))
    return [
        _whole(folder / "cells.csv", write(CELL_COLUMNS, cells)),
        _whole(folder / "samples.csv", write(_NAMED, _named_samples(source))),
    ]


def write_parquet(source: Exported, folder: Path) -> list[Path]:
    """`cells.parquet` and `samples.parquet`, with a row group per cell."""
    import pyarrow.parquet as pq

    def cells(file: IO[bytes]) -> None:
        pq.write_table(arrow_table(cell_rows(source.store, source.study, source.states), CELL_COLUMNS), file)

    def samples(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, schema(_NAMED), compression="zstd") as writer:
            for one in source.finished:
                names = names_of(one.cell)
                writer.write_table(arrow_table([names | row for row in sample_rows(source.store, one)], _NAMED))

    return [_whole(folder / "cells.parquet", cells), _whole(folder / "samples.parquet", samples)]


def _named_samples(source: Exported) -> Iterator[Values]:
    for one in source.finished:
        names = names_of(one.cell)
        yield from (names | row for row in sample_rows(source.store, one))


def _plain(value: Any) -> Any:
    """A number in full precision, and nothing where there is nothing."""
    return "" if value is None else value


def _whole(target: Path, write: Callable[[IO[bytes]], None]) -> Path:
    """Write a file that may be large, and put it in its place as a whole."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
