"""What `plan` prints: the cells of a study as a grid, how far each is and why, and what is left to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.matrix.cells import unknown_commits
from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.estimate import Estimate, estimate_study
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.sensitivity import sensitivity_lines
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.matrix.study import to_run
from finepruner_lmms.matrix.time_range import MOST
from finepruner_lmms.output import plain

_NAMED = 3
"""How many cells of one reason are named; of more, their number is said."""


@dataclass(frozen=True)
class Planned:
    """A cell as a plan has it. `word` is what its place in the grid says; `why`, where there is a why, stands below.

    A cell is stale where a result of its settings is there, made by other code, libraries, data or weights.
    """

    cell: Cell
    state: State
    word: str
    why: str


def planned_cells(store: Store, study: Study, states: Sequence[State], left: Sequence[Cell]) -> list[Planned]:
    """Each cell of a study, in its order."""
    changed = store.explain_missing(left)
    return [_planned(cell, state, changed) for cell, state in zip(study.cells, states, strict=True)]


def _planned(cell: Cell, state: State, changed: Mapping[str, str]) -> Planned:
    if state.damaged:
        return Planned(cell, state, "damaged", state.reason)
    if cell.id in changed and state.name == "missing":
        return Planned(cell, state, "stale", changed[cell.id])
    return Planned(cell, state, "to do" if state.name == "missing" else state.name, state.reason)


def plan_text(matrix: Matrix, store: Store, study: Study) -> str:
    """What would run and what is done, the differences that can be found, and an estimate of the time."""
    cells = study.cells
    states = store.states(cells)
    left = to_run(study, states)
    layers, tokens = study.num_layers, study.num_visual_tokens
    most = "up to " if study.images_differ else ""
    lines = [
        f"{study.name}: {len(study.rows)} rows x {len(study.tasks)} tasks = {len(cells)} cells, "
        f"{len(cells) - len(left)} done, {len(left)} to do",
        f"model: {study.model} ({layers} decoder layers, {most}{tokens} visual tokens per image)",
        "",
    ]
    planned = planned_cells(store, study, states, left)
    lines += [*_grid(study, planned), ""]
    if reasons := _reasons(planned):
        lines += [*reasons, ""]
    if left and (found := sensitivity_lines(store, study, states)):
        lines += [*found, ""]
    lines += unknown_commits(cells)
    if left:
        time = estimate_study(matrix, study, states, left, store)
        lines += _modes(time)
        lines += _range(time)
        lines.append(f"time for what is left: {_time(time)}")
    return "\n".join(map(plain, lines)).rstrip("\n") + "\n"


def _grid(study: Study, planned: Sequence[Planned]) -> list[str]:
    """A line for each row of the study, a column for each task; what is no cell is empty."""
    words: dict[tuple[int, str], str] = {(one.cell.row, one.cell.task): one.word for one in planned}
    heads = {task: plain(title(task)) for task in study.tasks}
    widest = max((len(word) for word in words.values()), default=0)
    wide = {task: max(len(head), widest) for task, head in heads.items()}
    labels = [plain(row.label) for row in study.rows]
    first = max(map(len, labels))
    lines = [" ".join([" " * (first + 2), *(heads[task].ljust(wide[task] + 1) for task in study.tasks)])]
    for number, label in enumerate(labels):
        states = (words.get((number, task), "").ljust(wide[task] + 1) for task in study.tasks)
        lines.append(" ".join([f"  {label.ljust(first)}", *states]))
    return [line.rstrip() for line in lines]


def _reasons(planned: Sequence[Planned]) -> list[str]:
    """A line for each reason, with the cells of which it is true."""
    groups: dict[tuple[str, str], list[Planned]] = {}
    for one in planned:
        if one.why:
            what = one.why.rpartition(" (since ")[0] if one.word == "stale" else one.why  # each has its own folder
            groups.setdefault((one.word, what), []).append(one)
    lines = []
    for (word, why), members in groups.items():
        if len(members) == 1:
            why = members[0].why
        named = "; ".join(one.cell.label for one in members[:_NAMED])
        more = f"; and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
        lines.append(f"{word}: {why}: {named}{more}")
    return lines


def plan_lines(matrix: Matrix, store: Store, study: Study) -> str:
    """The same for programs: one JSON object per cell and line."""
    lines = []
    states = store.states(study.cells)
    left = to_run(study, states)
    time = estimate_study(matrix, study, states, left, store)
    planned = planned_cells(store, study, states, left)
    for one, folder in zip(planned, store.cell_dirs(study.cells), strict=True):
        cell, state = one.cell, one.state
        facts: dict[str, Any] = {"id": cell.id, "state": state.name, "stale": one.word == "stale", "task": cell.task}
        facts |= cell.method.model_dump(exclude={"given", "imported"}) | {"limit": cell.limit}
        facts["reason"] = one.why
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


def _range(found: Estimate | None) -> list[str]:
    """Between what and what the time lies, and what it is on one GPU, where this is known of GPUs."""
    if found is None or not found.gpus:
        return []
    lines = [] if found.one is None else [f"on one GPU: about {_duration(found.one)}"]
    if found.spread is not None:
        hours = found.total * found.gpus / 3600
        low, high = (f"{hours * end:.1f}" for end in found.spread)
        lines.append(
            f"range: {low} to {high} GPU-hours, from cells answered together at no loss to {MOST.value:g} times the "
            "prediction, the most that was measured (docs/appendix/time_model.md)"
        )
    return lines


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
