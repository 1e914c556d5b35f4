"""What `plan` prints: the cells of a study, how far each is, and what is left to do."""

from __future__ import annotations

import json
from typing import Any

from finepruner_lmms.matrix.cells import unknown_commits
from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.estimate import Estimate, estimate_study
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.study import to_run
from finepruner_lmms.output import plain


def plan_text(matrix: Matrix, store: Store, study: Study) -> str:
    """What would run and what is done, with an estimate of the time."""
    cells = study.cells
    states = store.states(cells)
    left = to_run(study, states)
    layers, tokens = study.num_layers, study.num_visual_tokens
    most = "up to " if study.images_differ else ""
    lines = [
        f"{study.name}: {len(study.rows)} rows x {len(study.tasks)} tasks = {len(cells)} cells, "
        f"{len(cells) - len(left)} done, {len(left)} to do",
        f"model: {study.model} ({layers} decoder layers, {most}{tokens} visual tokens per image)",
    ]
    reasons = store.explain_missing(left)
    for cell, state in zip(cells, states, strict=True):
        why = reasons.get(cell.id, state.why)
        lines.append(f"  {state.name:8} {cell.label}{': ' + why if why else ''}")
    lines += unknown_commits(cells)
    if left:
        found = estimate_study(matrix, study, states, left, store)
        lines += _modes(found)
        lines.append(f"time for what is left: {_time(found)}")
    return "\n".join(map(plain, lines)) + "\n"


def plan_lines(matrix: Matrix, store: Store, study: Study) -> str:
    """The same for programs: one JSON object per cell and line."""
    lines = []
    states = store.states(study.cells)
    left = to_run(study, states)
    reasons = store.explain_missing(left)
    time = estimate_study(matrix, study, states, left, store)
    for cell, state, folder in zip(study.cells, states, store.cell_dirs(study.cells), strict=True):
        facts: dict[str, Any] = {"id": cell.id, "state": state.name, "task": cell.task}
        facts |= cell.method.model_dump(exclude={"given", "imported"}) | {"limit": cell.limit}
        facts["reason"] = reasons.get(cell.id, state.reason)
        facts["seconds"] = None if time is None else time.seconds.get(cell.id)  # None too where nothing is to do
        lines.append(json.dumps(facts | {"directory": str(folder)}) + "\n")
    return "".join(lines)


def _time(found: Estimate | None) -> str:
    if found is None:
        return "unknown until a cell is done"
    gpus = ""
    if found.gpus:
        gpus = f" on {found.gpus} GPU{'s' * (found.gpus > 1)}, {found.total * found.gpus / 3600:.1f} GPU-hours"
    return f"about {_duration(found.total)}{gpus} ({found.basis})"


def _modes(found: Estimate | None) -> list[str]:
    """How the cells are spread over processes, and what other ways would take; nothing where there is one process."""
    if found is None or (found.processes == 1 and found.mode == "resident"):
        return []
    others = [f"{name} {_duration(seconds)}" for name, seconds in found.modes.items() if name != found.mode]
    return [f"mode: {found.mode}, {found.processes} processes ({', '.join(others)})"]


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
