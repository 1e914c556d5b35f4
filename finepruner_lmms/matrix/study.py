"""A study: a checked matrix file, the directory of its results, and its rows and cells."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.matrix.attempts import failures
from finepruner_lmms.matrix.cells import describe_row, expand
from finepruner_lmms.matrix.config import Matrix, load_matrix
from finepruner_lmms.matrix.judged import assign
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.sections import MatrixFile, check_shape
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.matrix.yaml_places import ConfigError, Document
from finepruner_lmms.output import one_line, plain

if TYPE_CHECKING:
    from finepruner_lmms.doctor.report import Request
    from finepruner_lmms.pruners import Pruner


def open_study(
    config: Path, output: Path | None, limit: int | None = None, planning: bool = False
) -> tuple[Matrix, Store, Study]:
    """The checked matrix, its store, and its rows and cells. `ConfigError` if the file is wrong.

    `limit` takes the place of the file's; `FieldError` if it cannot. `planning` is that of `load_matrix`.
    """
    matrix = load_matrix(config, limit=limit, planning=planning)
    store = Store(output if output is not None else Path("runs") / matrix.file.name)
    study = Study(
        name=matrix.file.name,
        model=matrix.file.model.pretrained,
        num_layers=matrix.num_layers,
        num_visual_tokens=matrix.num_visual_tokens,
        images_differ=matrix.images_differ,
        tasks=tuple(matrix.file.tasks),
        rows=tuple(describe_row(row) for row in matrix.rows),
        cells=tuple(expand(matrix)),
    )
    return matrix, store, assign(study, matrix.file.judge)


def to_run(study: Study, states: Sequence[State], retry_failed: bool = True) -> list[Cell]:
    """The cells without answers on which nobody works, those that failed among them if they are to be tried again."""
    settled = ("done", "waiting", "running") if retry_failed else ("done", "waiting", "running", "failed")
    return [cell for cell, state in zip(study.cells, states, strict=True) if state.name not in settled]


def worth_trying(store: Store, cells: Sequence[Cell], max_attempts: int | None) -> list[Cell]:
    """Those of the cells of which fewer than `max_attempts` attempts failed; all if that is None."""
    if max_attempts is None:
        return list(cells)
    folders = store.cell_dirs(cells)
    return [cell for cell, folder in zip(cells, folders, strict=True) if failures(folder) < max_attempts]


def report_unfinished(store: Store, study: Study) -> int:
    """Say which cells are not as far as the matrix asks, and why; returns how many."""
    states = store.states(study.cells)
    enough = ("done", "waiting") if study.judge == "later" else ("done",)
    unfinished = [(cell, state) for cell, state in zip(study.cells, states, strict=True) if state.name not in enough]
    if study.judge == "later" and any(state.name == "waiting" for state in states):
        sys.stdout.write(plain(f"waiting for the judge: `judge {store.root} --url URL --model NAME`") + "\n")
    for cell, state in unfinished:
        sys.stderr.write(one_line(f"{state.name}: {cell.label}{': ' + state.why if state.why else ''}") + "\n")
    return len(unfinished)


def what_it_needs(config: Path) -> Request:
    """What `doctor` is to look at for a matrix file. One that is wrong is a line, and as much as can be read of it."""
    from finepruner_lmms.doctor.check import Check

    try:
        matrix = load_matrix(config, check_data=False)
    except ConfigError as error:
        first, *more = error.lines()
        rest = f" (and {len(more)} more)" if more else ""
        command = f"finepruner plan {shlex.quote(str(config))}"
        fix = ("correct it; this shows all mistakes", command) if config.is_file() else ("", "")
        wrong = Check("matrix file", "missing", f"{first}{rest}", *fix)
        return replace(_readable(config), wrong=wrong)
    return _request(matrix.file, [row.pruner for row in matrix.rows])


def _readable(config: Path) -> Request:
    """What can be looked at of a file with mistakes: nothing, unless its fields have the right types."""
    from finepruner_lmms.doctor.report import Request

    try:
        return _request(check_shape(Document(config)), [])
    except ConfigError:
        return Request()


def _request(file: MatrixFile, pruners: Sequence[Pruner]) -> Request:
    from finepruner_lmms.doctor.report import Request

    return Request(
        file.data,
        file.benchmarks,
        file.model.pretrained,
        file.model.attn_implementation,
        pruners,
        file.judge,
        file.submission,
    )
