"""The leaderboard as numbers: rows of methods and budgets, columns of tasks. `table` and `plot` show it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from finepruner_lmms.benchmarks.statistics import error_of_mean, measured
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Measure, Result, Speed
from finepruner_lmms.matrix.store import State, Store


@dataclass(frozen=True)
class Score:
    """A score as the field prints it (percent; MME in points) and as a share of the maximum, with standard errors.

    An error is None where it was not measured: fewer than two images, or a score that no draw of images changes.
    """

    shown: float
    shown_error: float | None
    percent: float
    percent_error: float | None
    measure: Measure | None = None
    """How a task that is none of the ten is measured. Without a scale, `percent` is the metric itself."""

    @property
    def counts(self) -> bool:
        """Whether it is a share of a known maximum, and so a part of averages."""
        return self.measure is None or self.measure.scale is not None


class Timed(NamedTuple):
    """How fast a row was on one task, of which so many questions have answers."""

    task: str
    answered: int
    speed: Speed


@dataclass(frozen=True)
class Line:
    """A row. `scores` lacks the tasks that are not done; `relative` is 100 for what equals vanilla.

    `relative_of_means` is the other published convention: `average` divided by vanilla's.

    `seeds` are those it is the mean of, with the spread of their averages (standard deviation). `cost` is the mean
    over tasks of what its prefills took (`finepruner_lmms.engine.cost.PrefillCost`), where that was recorded.
    """

    method: str
    budget: int | str
    tokens: float
    parameters: dict[str, Any]
    scores: dict[str, Score]
    average: float | None = None
    average_error: float | None = None
    relative: float | None = None
    relative_of_means: float | None = None
    seeds: tuple[Any, ...] = ()
    spread: float | None = None
    cost: dict[str, float] | None = None
    timed: tuple[Timed, ...] = ()
    """The tasks, of each seed, whose speed was measured."""
    submitted: frozenset[str] = frozenset()
    """Tasks whose answers are in a file for a server. They have no score, and are no part of the averages."""
    given: dict[str, Any] = field(default_factory=dict)
    """The parameters that the matrix file names for this very row."""
    waiting: frozenset[str] = frozenset()
    """The tasks whose answers wait for the judge."""
    imported: bool = False
    """Whether it was run elsewhere; then its budget and `tokens` are not known, and say nothing."""


@dataclass(frozen=True)
class Leaderboard:
    """All rows of a matrix, the largest budget first. `parameters` names the columns beside the budget."""

    name: str
    tasks: tuple[str, ...]
    parameters: tuple[str, ...]
    lines: tuple[Line, ...]
    num_visual_tokens: int | None
    """N of every image; None where images differ."""
    questions: dict[str, int] = field(default_factory=dict)
    judges: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Who scored a task: `exact`, or models as their servers call them."""
    asked: dict[str, int] = field(default_factory=dict)
    """How many answers to a task were put to its judge, in all rows."""
    damaged: tuple[str, ...] = ()
    """The cells that are shown as not done because their files are damaged, and what is wrong with them."""
    measures: dict[str, Measure] = field(default_factory=dict)
    """How each task that is none of the ten is measured."""
    apart: tuple[str, ...] = ()
    """The tasks that are no part of averages, since their maximum is not known or less is better."""


def leaderboard(store: Store, merge_seeds: bool = True) -> Leaderboard:
    """What is done so far in an output directory.

    `average` is the mean of a row's shares of the maximum, `relative` the mean over tasks of its score divided by
    vanilla's, `relative_of_means` the average divided by vanilla's; all only where every task is done. With
    `merge_seeds`, rows that differ in `seed` alone become one.
    """
    study = store.study()
    states = store.states(study.cells)
    results = [state.result for state in states]
    lines = _lines(study, states)
    vanilla = next((line for line in lines if line.method == "vanilla"), None)
    apart = tuple(
        task for task in study.tasks if any(task in line.scores and not line.scores[task].counts for line in lines)
    )
    lines = [_summarise(line, [task for task in study.tasks if task not in apart], vanilla) for line in lines]
    if merge_seeds:
        lines = _merge_seeds(lines, study.tasks)
    lines.sort(key=lambda line: -line.tokens)  # stable: inside a budget as in the file
    used = {name for line in lines for name in line.parameters}
    given = [name for row in study.rows for name in row.given]
    columns = tuple(name for name in dict.fromkeys(given) if name in used)
    answered = list(zip(study.cells, results, strict=True))
    questions = {cell.task: result.answered for cell, result in answered if result is not None}
    judges, asked = _judges(study, results)
    return Leaderboard(
        study.name,
        tuple(study.tasks),
        columns,
        tuple(lines),
        None if study.images_differ else study.num_visual_tokens,
        questions,
        judges,
        asked,
        damage_notes(study.cells, states),
        {cell.task: result.measure for cell, result in answered if result is not None and result.measure is not None},
        apart,
    )


def damage_notes(cells: Sequence[Cell], states: Sequence[State]) -> tuple[str, ...]:
    """A line for each cell whose files are damaged."""
    pairs = zip(cells, states, strict=True)
    return tuple(f"{cell.label}: not shown, {state.why}" for cell, state in pairs if state.damaged)


def _judges(study: Study, results: Sequence[Result | None]) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Who scored each task, and how many answers they were asked about."""
    found: dict[str, set[str]] = {}
    asked: dict[str, int] = {}
    for cell, result in zip(study.cells, results, strict=True):
        if result is not None and result.judge is not None:
            judge, task = result.judge, cell.task
            found.setdefault(task, set()).update(judge.models or [judge.name])  # none served, none asked
            asked[task] = asked.get(task, 0) + judge.asked
    return {task: tuple(sorted(names)) for task, names in found.items()}, asked


def _lines(study: Study, states: Sequence[State]) -> list[Line]:
    from finepruner_lmms.budget import parse_budget

    everything = study.num_visual_tokens
    unpruned = "all" if study.images_differ else everything
    named = {name for row in study.rows for name in row.given}
    scores: list[dict[str, Score]] = [{} for _ in study.rows]
    submitted: list[set[str]] = [set() for _ in study.rows]
    costs: list[list[dict[str, float]]] = [[] for _ in study.rows]
    timed: list[list[Timed]] = [[] for _ in study.rows]
    waiting: list[set[str]] = [set() for _ in study.rows]
    for cell, state in zip(study.cells, states, strict=True):
        result = state.result
        if state.name == "waiting":
            waiting[cell.row].add(cell.task)
        if result is not None:
            if result.submission is not None:
                submitted[cell.row].add(cell.task)
            else:
                scores[cell.row][cell.task] = _score(cell.task, result)
            if result.cost is not None:
                costs[cell.row].append(result.cost)
            if result.speed is not None:
                timed[cell.row].append(Timed(cell.task, result.answered, result.speed))
    lines = []
    for number, row in enumerate(study.rows):
        found, spent = scores[number], costs[number]
        imported = row.imported is not None
        budget = "" if imported else unpruned if row.budget is None else row.budget
        parameters = {name: value for name, value in row.parameters.items() if name in named}
        tokens = float(parse_budget(row.budget).tokens(everything))
        counted = [key for key in spent[0] if all(key in one for one in spent)] if spent else []
        cost = {key: statistics.fmean(one[key] for one in spent) for key in counted} or None
        line = Line(row.method, budget, tokens, parameters, found, cost=cost, given=row.given)
        line = replace(line, timed=tuple(timed[number]), waiting=frozenset(waiting[number]), imported=imported)
        lines.append(replace(line, submitted=frozenset(submitted[number])))
    return lines


def _score(task: str, result: Result) -> Score:
    benchmark = benchmark_for(task, result)
    shown, percent = benchmark.shown(result.metrics[benchmark.metric]), result.percent
    if result.measure is not None:  # a scale's percentage, or the metric itself
        error = measured(result.standard_error)
        return Score(shown, error, shown, error, result.measure)
    assert percent is not None, "a valid result has what is scored"
    error = measured(result.standard_error)
    # the metric is a multiple of the share, so its error is too; at 0 there is none
    return Score(shown, error * shown / percent if error is not None and percent else None, percent, error)


def _summarise(line: Line, tasks: Sequence[str], vanilla: Line | None) -> Line:
    tasks = [task for task in tasks if task not in line.submitted]
    if not tasks or any(task not in line.scores for task in tasks):
        return line
    scores = [line.scores[task] for task in tasks]
    error = error_of_mean([score.percent_error for score in scores])
    average = statistics.fmean(score.percent for score in scores)
    relative = relative_of_means = None
    if vanilla is not None and all(task in vanilla.scores and vanilla.scores[task].percent > 0 for task in tasks):
        whole = [vanilla.scores[task].percent for task in tasks]
        relative = statistics.fmean(100 * score.percent / full for score, full in zip(scores, whole, strict=True))
        relative_of_means = 100 * average / statistics.fmean(whole)
    return replace(line, average=average, average_error=error, relative=relative, relative_of_means=relative_of_means)


def _merge_seeds(lines: list[Line], tasks: Sequence[str]) -> list[Line]:
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        rest = tuple((name, value) for name, value in line.parameters.items() if name != "seed")
        groups.setdefault((line.method, line.budget, rest), []).append(line)
    return [group[0] if len(group) == 1 else _mean_line(group, tasks) for group in groups.values()]


def _mean_line(group: list[Line], tasks: Sequence[str]) -> Line:
    """The mean over seeds. Its errors are the mean errors: all seeds answer the same questions."""
    seeds = tuple(line.parameters.get("seed") for line in group)
    parameters = {name: value for name, value in group[0].parameters.items() if name != "seed"}
    given = {name: value for name, value in group[0].given.items() if name != "seed"}
    scores = {}
    for task in tasks:
        found = [line.scores[task] for line in group if task in line.scores]
        if len(found) == len(group):
            scores[task] = Score(
                statistics.fmean(score.shown for score in found),
                _mean_error([score.shown_error for score in found]),
                statistics.fmean(score.percent for score in found),
                _mean_error([score.percent_error for score in found]),
                found[0].measure,
            )
    line = replace(
        group[0],
        parameters=parameters,
        given=given,
        scores=scores,
        waiting=frozenset().union(*(other.waiting for other in group)),
        timed=tuple(timed for other in group for timed in other.timed),
        seeds=seeds,
        average=None,
        average_error=None,
        relative=None,
        relative_of_means=None,
        submitted=frozenset.intersection(*(line.submitted for line in group)),
    )
    if all(other.average is not None for other in group):
        averages = [other.average for other in group if other.average is not None]
        relatives = [other.relative for other in group if other.relative is not None]
        of_means = [other.relative_of_means for other in group if other.relative_of_means is not None]
        line = replace(
            line,
            average=statistics.fmean(averages),
            average_error=_mean_error([other.average_error for other in group]),
            relative=statistics.fmean(relatives) if len(relatives) == len(group) else None,
            relative_of_means=statistics.fmean(of_means) if len(of_means) == len(group) else None,
            spread=statistics.stdev(averages),
        )
    return line


def _mean_error(errors: Sequence[float | None]) -> float | None:
    """The mean of errors that were measured on the same questions; None unless all were."""
    known = [error for error in errors if error is not None]
    return statistics.fmean(known) if len(known) == len(errors) else None
