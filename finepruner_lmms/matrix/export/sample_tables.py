"""The samples of finished cells as Parquet files beside the results, so that a question need not read every line again.

    <output>/.tables/
      index.json      which cells each file has, and of what state of their samples
      <n>.parquet     the samples of some hundred cells

A file counts only while the samples of all its cells are what they were: by size, times and inode of `samples.jsonl`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finepruner_lmms.claims import lock
from finepruner_lmms.files import read_object, write_json
from finepruner_lmms.matrix.export.study import Exported
from finepruner_lmms.matrix.export.tables import SAMPLE_COLUMNS, Finished, arrow_table, sample_rows, schema

_FOLDER, _CELLS, _VERSION = ".tables", 100, 1
_MOST = 40  # files, above which small ones are made anew as large ones


@dataclass(frozen=True)
class Part:
    """A file, or where there is no place to write one a table in memory."""

    file: Path | None
    table: Any = None


def sample_parts(source: Exported) -> list[Part]:
    """The samples of all finished cells, from files that are made where they are not there or not current."""
    folder = source.store.root / _FOLDER
    states = {one.cell.id: _state(source, one) for one in source.finished}
    try:
        folder.mkdir(exist_ok=True)
        with lock(folder / ".lock", wait=True):
            return _from_files(source, folder, states)
    except OSError:  # read only, full: then it is read each time
        return [Part(None, _table(source, source.finished))]


def _from_files(source: Exported, folder: Path, states: dict[str, list[int]]) -> list[Part]:
    index = read_object(folder / "index.json") or {}
    kept = {name: cells for name, cells in _known(index).items() if _is_current(folder / name, cells, states)}
    if len(kept) > _MOST:
        kept = {name: cells for name, cells in kept.items() if len(cells["cells"]) >= _CELLS}
    there = {cell for cells in kept.values() for cell in cells["cells"]}
    missing = [one for one in source.finished if one.cell.id not in there]
    numbers = iter(n for n in itertools.count() if not (folder / f"{n}.parquet").exists())
    for start in range(0, len(missing), _CELLS):
        some = missing[start : start + _CELLS]
        name = f"{next(numbers)}.parquet"
        _write(source, some, folder / name)
        kept[name] = {"file": _stat(folder / name), "cells": {one.cell.id: states[one.cell.id] for one in some}}
    if missing or kept.keys() != _known(index).keys():
        write_json(folder / "index.json", {"version": _VERSION, "files": kept})
        for file in folder.glob("*.parquet"):
            if file.name not in kept:
                file.unlink(missing_ok=True)
    return [Part(folder / name) for name in kept]


def _known(index: dict[str, Any]) -> dict[str, Any]:
    files = index.get("files") if index.get("version") == _VERSION else None
    return files if isinstance(files, dict) else {}


def _is_current(file: Path, entry: Any, states: dict[str, list[int]]) -> bool:
    """Whether a file is the one that was written, and each of its cells is done and as it was then."""
    if not isinstance(entry, dict) or not isinstance(cells := entry.get("cells"), dict) or not file.is_file():
        return False
    return entry.get("file") == _stat(file) and all(states.get(cell) == state for cell, state in cells.items())


def _state(source: Exported, one: Finished) -> list[int]:
    return _stat(source.store.root / one.folder / "samples.jsonl")


def _stat(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _table(source: Exported, cells: Sequence[Finished]) -> Any:
    return arrow_table([row for one in cells for row in sample_rows(source.store, one)], SAMPLE_COLUMNS)


def _write(source: Exported, cells: Sequence[Finished], target: Path) -> None:
    """One row group per cell, so that a question about few cells reads few."""
    import pyarrow.parquet as pq

    partial = target.with_name(f".{target.name}.partial")
    with pq.ParquetWriter(partial, schema(SAMPLE_COLUMNS), compression="zstd") as writer:
        for one in cells:
            writer.write_table(_table(source, [one]))
    partial.replace(target)
