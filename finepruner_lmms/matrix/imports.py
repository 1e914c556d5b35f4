"""Rows that were not run here: `imports.json`, and how they stand beside those of the matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.matrix.plan import Cell, Method, Study
from finepruner_lmms.matrix.records import Record, load

FILE = "imports.json"


class Reported(Record):
    """What an evaluation's own results file said of a task, beside what became of it here."""

    task: str
    """Its name there."""
    questions: int
    metrics: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Import(Record):
    """One row: results of lmms-eval that `import` read."""

    label: str
    model: str
    """As the results call it."""
    arguments: str = ""
    """The model's arguments there, and `""` where they are not known."""
    source: str
    """The folder or file that was given."""
    files: dict[str, str]
    """The sha256 of each file that was read, by name."""
    lmms_eval: str = ""
    date: str = ""
    reported: tuple[Reported, ...] = ()
    cells: tuple[Cell, ...]

    @property
    def method(self) -> Method:
        """The row as those of the matrix are."""
        return row_of(self.label, self.model)


class Imports(Record):
    """`imports.json`."""

    schema_version: int = 1
    imports: tuple[Import, ...] = ()


def row_of(label: str, model: str) -> Method:
    """An imported row: its label stands where others have their method; no budget is known of it."""
    return Method(method=label, budget=None, parameters={}, given={}, imported=model)


def alone(doc_id: int) -> str:
    """What stands for the picture of an imported question of which nobody knows which it is about."""
    return f"question {doc_id}"


def read_imports(root: Path) -> Imports:
    """What was imported into an output directory. `Damage` where the file holds something else."""
    return load(Imports, root / FILE) or Imports()


def with_imports(study: Study | None, imports: Imports, name: str) -> Study | None:
    """A study with the imported rows after its own; where nothing was run, of them alone, under `name`.

    Beside rows that were run, only tasks of the matrix are shown, lest one that these lack takes them their average.
    """
    if not imports.imports:
        return study
    if study is None:
        nothing: dict[str, Any] = {"num_layers": 0, "num_visual_tokens": 0, "tasks": (), "rows": (), "cells": ()}
        study = Study(name=name, model="imported results", **nothing)
    rows, cells = list(study.rows), list(study.cells)
    shown = set(study.tasks) or {cell.task for one in imports.imports for cell in one.cells}
    for one in imports.imports:
        mine = [cell for cell in one.cells if cell.task in shown]
        cells += [cell.model_copy(update={"row": len(rows), "method": one.method}) for cell in mine]
        rows.append(one.method)
    tasks = dict.fromkeys([*study.tasks, *(task for task in BENCHMARKS if task in shown)])
    return study.model_copy(update={"rows": tuple(rows), "cells": tuple(cells), "tasks": tuple(tasks)})


def without_imports(study: Study) -> Study:
    """The study as it was run: without rows that were imported, and without tasks that only these have."""
    if all(row.imported is None for row in study.rows):
        return study
    rows = tuple(row for row in study.rows if row.imported is None)
    cells = tuple(cell for cell in study.cells if cell.method.imported is None)
    own = {cell.task for cell in cells}
    return study.model_copy(
        update={"rows": rows, "cells": cells, "tasks": tuple(task for task in study.tasks if task in own)}
    )
