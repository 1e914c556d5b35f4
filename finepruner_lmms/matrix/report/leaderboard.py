"""Making the leaderboard of one study or several: rows of methods and budgets, columns of tasks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finepruner_lmms.matrix.plan import Cell, Study, row_label
from finepruner_lmms.matrix.records import Result
from finepruner_lmms.matrix.report.baselines import with_best, with_deltas
from finepruner_lmms.matrix.report.board import Leaderboard, Line, Timed
from finepruner_lmms.matrix.report.scored import Score, Tallies, estimate_score
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.matrix.tallies import tally_of
from finepruner_lmms.statistics.scores import average, relative, relative_of_means


def leaderboard(
    *stores: Store, merge_seeds: bool = True, baseline: str | None = None, test: bool = True
) -> Leaderboard:
    """What is done so far in one output directory, or several.

    `average` is the mean of a row's shares of the maximum, `relative` the mean over tasks of its score divided by
    vanilla's, `relative_of_means` the average divided by vanilla's; all only where every task is done. With
    `merge_seeds`, rows that differ in `seed` alone become one. `baseline` names the row, or the method at the same
    budget, that rows are compared with (`deltas`); without `test` there are no p-values, which saves time.
    """
    found = [_Read.of(store) for store in stores]
    names = _distinct([one.study.name for one in found])
    tasks = tuple(dict.fromkeys(task for one in found for task in one.study.tasks))
    lines: list[Line] = []
    for one, name in zip(found, names, strict=True):
        lines += [line for line in _lines(one, name) if not _is_there(line, lines)]
    common = [task for task in tasks if all(task in one.study.tasks for one in found)]
    apart = tuple(
        task
        for task in tasks
        if task not in common or any(task in line.scores and not line.scores[task].counts for line in lines)
    )
    if merge_seeds:
        lines = _merge_seeds(lines, tasks)
    whole = {line.study: line for line in reversed(lines) if line.method == "vanilla"}
    models = {name: (one.study.model, _limit(one.study)) for one, name in zip(found, names, strict=True)}
    counted = [task for task in tasks if task not in apart]
    lines = [_summarise(line, counted, _vanilla(line, whole, models)) for line in lines]
    lines.sort(key=lambda line: -line.tokens)  # stable: inside a budget as in the file
    lines = with_best(with_deltas(lines, tasks, counted, baseline, test), tasks)
    used = {name for line in lines for name in line.parameters}
    given = [name for one in found for row in one.study.rows for name in row.given]
    results = [(cell, state.result) for one in found for cell, state in one.cells if state.result is not None]
    judges, asked = _judges(results)
    sizes = {None if one.study.images_differ else one.study.num_visual_tokens for one in found}
    return Leaderboard(
        " + ".join(names),
        tasks,
        tuple(name for name in dict.fromkeys(given) if name in used),
        tuple(lines),
        sizes.pop() if len(sizes) == 1 else None,
        {cell.task: result.answered for cell, result in results},
        judges,
        asked,
        tuple(note for one in found for note in damage_notes(one.study.cells, one.states)),
        {cell.task: result.measure for cell, result in results if result.measure is not None},
        apart,
        tuple(names),
        baseline or "",
    )


@dataclass(frozen=True)
class _Read:
    """A study with the state of its cells."""

    store: Store
    study: Study
    states: Sequence[State]

    @classmethod
    def of(cls, store: Store) -> _Read:
        study = store.study()
        return cls(store, study, store.states(study.cells))

    @property
    def cells(self) -> list[tuple[Cell, State]]:
        """Each with its state."""
        return list(zip(self.study.cells, self.states, strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of studies, numbered where two are called the same."""
    return [name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)]


def _is_there(line: Line, lines: Sequence[Line]) -> bool:
    """Whether another study has this very row, with the same answers."""
    return line.imported is False and any(
        other.study != line.study
        and other.label == line.label
        and other.scores == line.scores
        and other.tallies.keys() == line.tallies.keys()
        and all(_same_answers(tallies, other.tallies[task]) for task, tallies in line.tallies.items())
        and bool(line.tallies)
        for other in lines
    )


def _same_answers(one: Any, other: Any) -> bool:
    from finepruner_lmms.lazy import np

    return all(a.asked == b.asked and np.array_equal(a.scores, b.scores) for a, b in zip(one, other, strict=True))


def _limit(study: Study) -> int | None:
    return study.cells[0].limit if study.cells else None


def _vanilla(line: Line, whole: dict[str, Line], models: dict[str, Any]) -> Line | None:
    """The unpruned model that a row is relative to: of its own study, or of another with the same model and limit."""
    if line.study in whole:
        return whole[line.study]
    return next((other for name, other in whole.items() if models[name] == models[line.study]), None)


def damage_notes(cells: Sequence[Cell], states: Sequence[State]) -> tuple[str, ...]:
    """A line for each cell whose files are damaged."""
    pairs = zip(cells, states, strict=True)
    return tuple(f"{cell.label}: not shown, {state.why}" for cell, state in pairs if state.damaged)


def _judges(results: Sequence[tuple[Cell, Result]]) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Who scored each task, and how many answers they were asked about."""
    found: dict[str, set[str]] = {}
    asked: dict[str, int] = {}
    for cell, result in results:
        if result.judge is not None:
            judge, task = result.judge, cell.task
            found.setdefault(task, set()).update(judge.models or [judge.name])  # none served, none asked
            asked[task] = asked.get(task, 0) + judge.asked
    return {task: tuple(sorted(names)) for task, names in found.items()}, asked


def _lines(read: _Read, name: str) -> list[Line]:
    from finepruner_lmms.budget import parse_budget

    study, everything = read.study, read.study.num_visual_tokens
    unpruned = "all" if study.images_differ else everything
    named = {name for row in study.rows for name in row.given}
    scores: list[dict[str, Score]] = [{} for _ in study.rows]
    tallies: list[Tallies] = [{} for _ in study.rows]
    submitted: list[set[str]] = [set() for _ in study.rows]
    costs: list[list[dict[str, float]]] = [[] for _ in study.rows]
    timed: list[list[Timed]] = [[] for _ in study.rows]
    waiting: list[set[str]] = [set() for _ in study.rows]
    for cell, state in read.cells:
        result = state.result
        if state.name == "waiting":
            waiting[cell.row].add(cell.task)
        if result is not None:
            if result.submission is not None:
                submitted[cell.row].add(cell.task)
            else:
                tally = tally_of(read.store, cell, result)
                tallies[cell.row][cell.task] = () if tally is None else (tally,)
                scores[cell.row][cell.task] = estimate_score(cell.task, [result], tallies[cell.row][cell.task])
            if result.cost is not None:
                costs[cell.row].append(result.cost)
            if result.speed is not None:
                timed[cell.row].append(Timed(cell.task, result.answered, result.speed))
    lines = []
    for number, row in enumerate(study.rows):
        imported = row.imported is not None
        spent = costs[number]
        counted = [key for key in spent[0] if all(key in one for one in spent)] if spent else []
        lines.append(
            Line(
                row.method,
                "" if imported else unpruned if row.budget is None else row.budget,
                float(parse_budget(row.budget).tokens(everything)),
                {name: value for name, value in row.parameters.items() if name in named},
                scores[number],
                label=row.label,
                study=name,
                cost={key: statistics.fmean(one[key] for one in spent) for key in counted} or None,
                given=row.given,
                timed=tuple(timed[number]),
                waiting=frozenset(waiting[number]),
                imported=imported,
                submitted=frozenset(submitted[number]),
                tallies=tallies[number],
                rows=(number,),
            )
        )
    return lines


def _summarise(line: Line, tasks: Sequence[str], vanilla: Line | None) -> Line:
    """With averages, where every task is done."""
    tasks = [task for task in tasks if task not in line.submitted]
    if not tasks or any(task not in line.scores for task in tasks):
        return line
    mean = statistics.fmean(line.scores[task].percent for task in tasks)
    found = {task: line.tallies.get(task, ()) for task in tasks}
    if all(found.values()):
        told = average(found)
        line = replace(line, average_error=told.error, average_low=told.low, average_high=told.high)
    line = replace(line, average=mean)
    if vanilla is None or not all(task in vanilla.scores and vanilla.scores[task].percent > 0 for task in tasks):
        return line
    whole = {task: vanilla.scores[task].percent for task in tasks}
    line = replace(
        line,
        relative=statistics.fmean(100 * line.scores[task].percent / whole[task] for task in tasks),
        relative_of_means=100 * mean / statistics.fmean(whole.values()),
    )
    of_vanilla = {task: vanilla.tallies.get(task, ()) for task in tasks}
    if line is vanilla or line.method == "vanilla" or not all(found.values()) or not all(of_vanilla.values()):
        return line
    return replace(
        line,
        relative_error=relative(found, of_vanilla).error,
        relative_of_means_error=relative_of_means(found, of_vanilla).error,
    )


def _merge_seeds(lines: list[Line], tasks: Sequence[str]) -> list[Line]:
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        rest = tuple((name, value) for name, value in line.parameters.items() if name != "seed")
        groups.setdefault((line.study, line.method, line.budget, rest), []).append(line)
    return [group[0] if len(group) == 1 else _mean_line(group, tasks) for group in groups.values()]


def _mean_line(group: list[Line], tasks: Sequence[str]) -> Line:
    """The mean over seeds. Its errors hold both what images and what seeds do."""
    given = {name: value for name, value in group[0].given.items() if name != "seed"}
    scores: dict[str, Score] = {}
    tallies: Tallies = {}
    for task in tasks:
        found = [line.scores[task] for line in group if task in line.scores]
        if len(found) == len(group):
            tallies[task] = tuple(tally for line in group for tally in line.tallies.get(task, ()))
            scores[task] = Score.over_seeds(found, tallies[task] if len(tallies[task]) == len(group) else ())
    done = [task for task in tasks if task in scores]
    averages = [statistics.fmean(line.scores[task].percent for task in done) for line in group] if done else []
    return replace(
        group[0],
        label=row_label(group[0].method, group[0].budget, given),  # imported rows have no seeds to be merged
        parameters={name: value for name, value in group[0].parameters.items() if name != "seed"},
        given=given,
        scores=scores,
        tallies=tallies,
        rows=tuple(row for line in group for row in line.rows),
        waiting=frozenset().union(*(other.waiting for other in group)),
        timed=tuple(timed for other in group for timed in other.timed),
        seeds=tuple(line.parameters.get("seed") for line in group),
        submitted=frozenset.intersection(*(line.submitted for line in group)),
        spread=statistics.stdev(averages) if len(done) == len(tasks) else None,
    )
