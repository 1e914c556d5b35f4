"""Cells: a row and a task. What a cell is called contains everything that can change its result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.plan import Cell, Method
from finepruner_lmms.matrix.rows import Row

if TYPE_CHECKING:
    from finepruner_lmms.lmms.identity_record import Identity


def describe_row(row: Row) -> Method:
    """A row as what it comes to: with the parameters that the file leaves to their defaults."""
    pruner = row.pruner
    assert not isinstance(pruner.budget, Fraction), "a matrix file holds numbers and texts"
    given = {name: value for name, value in row.given if name != "budget"}
    return Method(method=pruner.name, budget=pruner.budget, parameters=pruner.parameters(), given=given)


def expand(matrix: Matrix) -> list[Cell]:
    """The cells of a matrix, task by task, so that the columns of the leaderboard fill one after the other."""
    from finepruner_lmms.benchmarks import BENCHMARKS
    from finepruner_lmms.benchmarks.protocol import applied
    from finepruner_lmms.benchmarks.submission import SERVED
    from finepruner_lmms.data.identity import data_identity, task_data_identity
    from finepruner_lmms.data.lmms_tasks import all_tasks
    from finepruner_lmms.lmms.identity import cell_identity
    from finepruner_lmms.sources import remember_sources

    file = matrix.file
    rows = [describe_row(row) for row in matrix.rows]
    answers = _answer_identities(matrix)
    others = all_tasks(file.tasks_dir) if len(file.benchmarks) < len(file.tasks) else {}
    cells = []
    for task in file.tasks:
        protocol = applied(task, file.protocol)
        submitted = file.submission and task in SERVED
        other = None if task in BENCHMARKS else others[task]
        content = data_identity(file.data, task) if other is None else task_data_identity(other)
        definition = "" if other is None else other.file
        for number, row in enumerate(rows):
            identity = cell_identity(
                answers[number], task, file.limit, submitted, content, definition=definition, protocol=protocol
            )
            cells.append(
                Cell(
                    id=identity.id,
                    slug=_slug(f"{task}-{row.label}"),
                    row=number,
                    task=task,
                    method=row,
                    model=file.model,
                    limit=file.limit,
                    data=file.data if other is None else "its own",
                    submission=submitted,
                    identity=identity,
                    definition=definition,
                    protocol=protocol,
                )
            )
    remember_sources()
    return cells


def _answer_identities(matrix: Matrix) -> list[Identity]:
    """Of the answers of each row."""
    from finepruner_lmms.checkpoints.fetch import resolve
    from finepruner_lmms.checkpoints.released import RELEASED
    from finepruner_lmms.lmms.identity import (
        answer_identity,
        answer_settings,
        checkpoint_identity,
        reads_clip,
        resolved_dtype,
    )
    from finepruner_lmms.matrix.gpus import count_gpus

    model, geometry = matrix.file.model, Geometry.of(matrix.shape)
    tokens = geometry.num_visual_tokens
    pretrained, settings = resolve(model.pretrained), answer_settings(model, matrix.family)
    device = ("cuda" if count_gpus() else "cpu") if model.device == "auto" else model.device
    stored = RELEASED[pretrained]["torch_dtype"] if matrix.released else None
    dtype = resolved_dtype(model.dtype, device, pretrained, stored)
    pruners = [row.pruner for row in matrix.rows]
    plain = checkpoint_identity(pretrained)
    return [
        answer_identity(
            pruner,
            settings,
            dtype,
            checkpoint_identity(pretrained, pruner, tokens, matrix.shape) if reads_clip(pruner, tokens) else plain,
            tokens,
            varies=geometry.varies,
        )
        for pruner in pruners
    ]


def unknown_commits(cells: Sequence[Cell]) -> list[str]:
    """A line for each hub repository of which nobody could say at which commit it is."""
    names = {name for cell in cells for name in cell.identity.unknown}
    return [
        f"{name}: its commit is not known here (no network, and not in the local cache), so that results of an earlier "
        "one would count as done; plan again where the hub can be reached, or after it is fetched"
        for name in sorted(names)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text.replace("%", "pct")).strip("-")[:80]
