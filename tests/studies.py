"""Cells and studies for tests that write results by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finepruner_lmms.lmms.identity import Identity
from finepruner_lmms.matrix.plan import Cell, Method, Study
from finepruner_lmms.matrix.results import read_lines, write_result
from finepruner_lmms.matrix.sections import ModelSection

IDENTITY = Identity(
    settings="s", dtype="float16", checkpoint="c", libraries={"torch": "2.11.0"}, engine={"engine": "e"},
    method={"fastv": "m"}, task="t", data="d",
)  # fmt: skip
VANILLA = Method(method="vanilla", budget=None, parameters={}, given={})


def method(name: str, budget: int | str | None = None, parameters: dict[str, Any] | None = None, **given) -> Method:
    """A row; what the file gives is a parameter, too."""
    return Method(method=name, budget=budget, parameters={**(parameters or {}), **given}, given=given)


def cell(name: str, task: str, row: int = 0, of: Method = VANILLA, **changes) -> Cell:
    """A cell with the id `name`, in the directory `<task>-<name>`."""
    values: dict[str, Any] = {"id": name, "slug": task, "row": row, "task": task, "method": of, "data": "demo"}
    values |= {"model": ModelSection(), "limit": None, "submission": False, "identity": IDENTITY}
    return Cell(**(values | changes))


def stored_cell(name: str, task: str, row: int = 0, of: Method = VANILLA, **changes) -> Cell:
    """A cell whose id is that of its identity, as a result on disk must have it."""
    identity = IDENTITY.model_copy(update={"settings": name})
    return cell(identity.id, task, row, of, identity=identity, **changes)


def study(rows: list[Method], cells: list[Cell], num_layers: int = 32, name: str = "study") -> Study:
    """Rows and cells, in which the tasks are those of the cells."""
    tasks = tuple(dict.fromkeys(cell.task for cell in cells))
    return Study(
        name=name, model="demo", num_layers=num_layers, num_visual_tokens=576, tasks=tasks, rows=tuple(rows),
        cells=tuple(cells),
    )  # fmt: skip


def rewrite(folder: Path, **changes) -> None:
    """Write a result again with other values, as if it had been so from the beginning."""
    known = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    write_result(folder, known | changes, read_lines(folder / "samples.jsonl"))
