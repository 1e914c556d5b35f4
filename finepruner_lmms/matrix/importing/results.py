"""What lmms-eval wrote elsewhere, as a row beside those that were run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.claims import lock
from finepruner_lmms.errors import FieldError, list_names, show
from finepruner_lmms.files import write_json
from finepruner_lmms.matrix.foreign import ForeignRun, read_run
from finepruner_lmms.matrix.importing.cells import cell_of, write_cell
from finepruner_lmms.matrix.importing.lines import Made, made_of
from finepruner_lmms.matrix.imports import FILE, Import, Imports, Reported, row_of
from finepruner_lmms.matrix.store import Store

_MOST = 80  # characters of a label


def import_results(root: Path, label: str, results: Path, data: str | None = None, replace: bool = False) -> str:
    """Make a row `label` of lmms-eval's results, in an output directory that is made if it is not there.

    `data` is where the questions are (as in a matrix file), and those of the matrix unless it is given. Returns what
    there is to say, a line each. `ForeignError` where the results are not whole or contradict themselves, `FieldError`
    where the label is taken; then nothing is written.
    """
    if root.exists() and not root.is_dir():
        raise FieldError("OUTPUT", f"{str(root)!r} is a file", value=str(root), fix="give a folder")
    store, label = Store(root), _check_label(label)
    run = read_run(results)
    study = store.study() if (root / "matrix.json").exists() or (root / FILE).exists() else None
    imports = store.imports()
    earlier = next((one for one in imports.imports if one.label == label), None)
    if earlier is not None and not replace:
        problem = f"{label!r} was imported already, from {earlier.source}"
        raise FieldError("--label", problem, value=label, fix="give another, or --replace")
    if study is not None and earlier is None and label in (labels := [row.label for row in study.rows]):
        fix = f"give another than {list_names(labels)}"
        raise FieldError("--label", f"{label!r} is a row of the matrix", value=label, fix=fix)
    if earlier is not None and study is not None:  # what is replaced says nothing about itself
        kept = tuple(cell for cell in study.cells if cell.method.label != label)
        study = study.model_copy(update={"cells": kept})
    data = data or next((cell.data for cell in study.cells if cell.method.imported is None), None) if study else data
    made = [made_of(store, study, task, data) for task in run.tasks]
    row = row_of(label, run.model)
    cells = [cell_of(run, row, task, one) for task, one in zip(run.tasks, made, strict=True)]
    root.mkdir(parents=True, exist_ok=True)
    for cell, one in zip(cells, made, strict=True):
        write_cell(store, cell, run, label, one)
    new = Import(
        label=label, model=run.model, arguments=run.arguments, source=str(results), files=run.files,
        lmms_eval=run.version, date=run.date, cells=tuple(cells),
        reported=tuple(
            Reported(task=task.name, questions=len(task.samples), metrics=task.metrics, notes=tuple(one.notes))
            for task, one in zip(run.tasks, made, strict=True)
        ),
    )  # fmt: skip
    with lock(root / ".imports.lock", wait=True):
        others = [one for one in store.imports().imports if one.label != label]
        write_json(root / FILE, Imports(imports=(*others, new)).model_dump(mode="json"))
    return "".join(f"{line}\n" for line in _said(label, run, made, root))


def _check_label(label: str) -> str:
    """One line of printable text that no method of ours is called."""
    from finepruner_lmms.pruners.registry import known_methods

    plain = " ".join(label.split())
    if not plain or len(plain) > _MOST or not plain.isprintable():
        problem = f"got {show(label)}; expected 1 to {_MOST} printable characters"
        raise FieldError("--label", problem, value=label)
    if plain in known_methods():
        problem = f"{plain!r} is a method of this package, whose rows the report reads as such"
        raise FieldError("--label", problem, value=label, fix=f"say whose it is, such as '{plain} (fork)'")
    return plain


def _said(label: str, run: ForeignRun, made: Sequence[Made], root: Path) -> list[str]:
    lines = [f"{label}: {run.model}, {len(made)} task{'s' * (len(made) > 1)}, a row of {root}"]
    for one in made:
        benchmark = BENCHMARKS[one.benchmark]
        score = "waiting for the judge" if one.waiting else f"{benchmark.shown(benchmark.value(one.logged)):.1f}"
        lines.append(f"  {benchmark.title}: {score}, {len(one.samples)} questions")
        lines += [f"    {note}" for note in one.notes]
    return [*lines, *(f"  {note}" for note in run.notes)]
