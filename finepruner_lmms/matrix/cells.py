"""Cells: a row and a task. What a cell is called contains everything that can change its result."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.rows import Row


@dataclass(frozen=True)
class Cell:
    """One method with its parameters on one task. `row` is its place among the rows of the matrix."""

    id: str
    slug: str
    row: int
    task: str
    spec: dict[str, Any]

    @property
    def folder(self) -> str:
        """The name of its directory."""
        return f"{self.slug}-{self.id}"

    @property
    def label(self) -> str:
        """For people: `pope · fastv 128`."""
        return f"{self.task} · {row_label(self.spec)}"


def row_label(row: dict[str, Any]) -> str:
    """For people: `finepruner 128 heads=16`, with the parameters that the matrix file gives."""
    given = " ".join(f"{name}={value}" for name, value in row["given"].items())
    budget = "" if row["budget"] is None else f" {row['budget']}"
    return f"{row['method']}{budget}{' ' + given if given else ''}"


def describe_row(row: Row) -> dict[str, Any]:
    """A row as plain values: `parameters` are all of the method's, `given` those named in the file."""
    from finepruner_lmms.pruners import build_pruner

    pruner = build_pruner(row.method, **row.arguments)
    given = {name: value for name, value in row.given if name != "budget"}
    return {"method": pruner.name, "budget": pruner.budget, "parameters": pruner.parameters(), "given": given}


def expand(matrix: Matrix) -> list[Cell]:
    """The cells of a matrix, task by task, so that the columns of the leaderboard fill one after the other."""
    from finepruner_lmms.benchmarks.submission import SERVED
    from finepruner_lmms.checkpoints.load import resolve
    from finepruner_lmms.data.task_folders import data_identity
    from finepruner_lmms.lmms.identity import checkpoint_identity, code_revision, library_versions

    file = matrix.file
    common = {
        # where it runs does not change what is computed
        "model": {k: v for k, v in file.model.model_dump().items() if k != "device"},
        "limit": file.limit,
        "code": code_revision(),
        "checkpoint": checkpoint_identity(resolve(file.model.pretrained)),
        "libraries": library_versions(),
    }
    rows = [describe_row(row) for row in matrix.rows]
    cells = []
    data: dict[str, Any]
    for task in file.tasks:
        data = {"task": task, "data": file.data, "data_identity": data_identity(file.data, task)}
        if file.submission and task in SERVED:
            data["submission"] = True
        for number, row in enumerate(rows):
            spec = common | data | row
            counted = {key: value for key, value in spec.items() if key != "given"}
            text = json.dumps(counted, sort_keys=True, ensure_ascii=True)
            cell_id = hashlib.sha256(text.encode()).hexdigest()[:12]
            cells.append(Cell(cell_id, _slug(f"{task}-{row_label(row)}"), number, task, spec))
    return cells


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "pct")).strip("-")[:80]


def as_record(cell: Cell) -> dict[str, Any]:
    """For `matrix.json` and the worker."""
    return asdict(cell) | {"folder": cell.folder, "label": cell.label}
