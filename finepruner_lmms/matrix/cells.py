"""Cells: a row and a task. What a cell is called contains everything that can change its result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.rows import Row

if TYPE_CHECKING:
    from finepruner_lmms.lmms.identity import Identity


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
    from finepruner_lmms.data.identity import data_identity
    from finepruner_lmms.lmms.identity import cell_identity

    file = matrix.file
    # where it runs does not change what is computed
    common = {"model": {k: v for k, v in file.model.model_dump().items() if k != "device"}, "limit": file.limit}
    rows = [describe_row(row) for row in matrix.rows]
    answers = _answer_identities(matrix)
    cells = []
    for task in file.tasks:
        data: dict[str, Any] = {"task": task, "data": file.data}
        submitted = file.submission and task in SERVED
        if submitted:
            data["submission"] = True
        content = data_identity(file.data, task)
        for number, row in enumerate(rows):
            identity = cell_identity(answers[number], task, file.limit, submitted, content)
            spec = common | data | row | {"identity": identity.model_dump()}
            cells.append(Cell(identity.id, _slug(f"{task}-{row_label(row)}"), number, task, spec))
    return cells


def _answer_identities(matrix: Matrix) -> list[Identity]:
    """Of the answers of each row."""
    from finepruner_lmms.checkpoints.load import resolve
    from finepruner_lmms.lmms.identity import (
        answer_identity,
        answer_settings,
        checkpoint_identity,
        reads_clip,
        resolved_dtype,
    )
    from finepruner_lmms.matrix.launch import count_gpus

    model, tokens = matrix.file.model, matrix.num_visual_tokens
    pretrained, settings = resolve(model.pretrained), answer_settings(model)
    device = ("cuda" if count_gpus() else "cpu") if model.device == "auto" else model.device
    dtype = resolved_dtype(model.dtype, device, pretrained)
    pruners = [row.pruner for row in matrix.rows]
    plain = checkpoint_identity(pretrained)
    return [
        answer_identity(
            pruner,
            settings,
            dtype,
            checkpoint_identity(pretrained, pruner, tokens) if reads_clip(pruner, tokens) else plain,
            tokens,
        )
        for pruner in pruners
    ]


def unknown_commits(cells: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each hub repository of which nobody could say at which commit it is."""
    from finepruner_lmms.lmms.identity import Identity

    names = {name for cell in cells for name in Identity.model_validate(cell["spec"]["identity"]).unknown}
    return [
        f"{name}: its commit is not known here (no network, and not in the local cache), so that results of an earlier "
        "one would count as done; plan again where the hub can be reached, or after it is fetched"
        for name in sorted(names)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "pct")).strip("-")[:80]


def as_record(cell: Cell) -> dict[str, Any]:
    """For `matrix.json` and the worker."""
    return asdict(cell) | {"folder": cell.folder, "label": cell.label}
