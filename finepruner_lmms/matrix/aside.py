"""What stands in a new attempt's way at a cell is put aside, never deleted."""

from __future__ import annotations

import os
from pathlib import Path

from finepruner_lmms.files import set_aside

_RESULTS = ("result.json", "samples.jsonl", "submission.json", "submission.xlsx", "answered.json", "answers.jsonl")
_RECORDS = ("status.json", "error.json")
_FOLDERS = ("cache",)


def make_way(folder: Path) -> None:
    """Make a cell's folder one that can be written to: what is no folder, or no file, where one belongs becomes
    `*.damaged`."""
    for place in (folder.parent, folder):
        if os.path.lexists(place) and not place.is_dir():
            set_aside(place)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*_RECORDS, *_RESULTS):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            set_aside(folder / name)
    for name in _FOLDERS:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            set_aside(folder / name)


def put_away(folder: Path, attempt: Path) -> None:
    """Keep what an earlier attempt left: its error, and samples without a result, in its folder `attempt`.

    A result of a cell that is computed anew is not valid, or it would not be: it becomes `result.json.damaged`, and
    what belongs to it as well.
    """
    damaged = any(os.path.lexists(folder / name) for name in ("result.json", "answered.json"))
    for name in ("error.json", *_RESULTS):
        if not os.path.lexists(folder / name):
            continue
        if damaged and name in _RESULTS:
            set_aside(folder / name)
        else:
            (folder / name).replace(attempt / name)
