"""The leaderboard as typed data: what tables, pages and figures show, and none of them computes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from finepruner_lmms.matrix.records import Measure, Speed
from finepruner_lmms.matrix.report.scored import Score, Tallies
from finepruner_lmms.statistics.differences import Difference

AVERAGE = "average"
"""The column that no task has."""


class Timed(NamedTuple):
    """How fast a row was on one task, of which so many questions have answers."""

    task: str
    answered: int
    speed: Speed


@dataclass(frozen=True)
class Delta:
    """A row minus its baseline in one column, as the field prints scores (percent; MME in points).

    `p_adjusted` is Holm's, over all rows of the column that have a baseline. `mark` is "better" or "worse" where it is
    below 5 %.
    """

    baseline: str
    difference: Difference
    p_adjusted: float | None = None

    @property
    def mark(self) -> str:
        """What the test says at 5 %."""
        if self.p_adjusted is None or self.p_adjusted >= 0.05:
            return ""
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True)
class Line:
    """A row. `scores` lacks the tasks that are not done; `relative` is 100 for what equals vanilla.

    `relative_of_means` is the other published convention: `average` divided by vanilla's. Errors are over images, and
    over seeds where there are several; None where they were not measured.

    `seeds` are those it is the mean of, with the spread of their averages (standard deviation). `cost` is the mean
    over tasks of what its prefills took (`finepruner_lmms.engine.cost.PrefillCost`), where that was recorded.
    """

    method: str
    budget: int | str
    tokens: float
    parameters: dict[str, Any]
    scores: dict[str, Score]
    label: str = ""
    """For people, and for `compare`: `finepruner 64 heads=16`, without the seed where it is the mean of several."""
    study: str = ""
    """The name of the study that it is of."""
    average: float | None = None
    average_error: float | None = None
    average_low: float | None = None
    average_high: float | None = None
    relative: float | None = None
    relative_error: float | None = None
    relative_of_means: float | None = None
    relative_of_means_error: float | None = None
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
    deltas: dict[str, Delta] = field(default_factory=dict)
    """By task and `average`: the difference to the row's baseline; none for vanilla, or where that was asked others."""
    best: frozenset[str] = frozenset()
    """The columns in which no other row of this budget is better, as far as the paired test can tell."""
    tallies: Tallies = field(default_factory=dict, repr=False, compare=False)
    """By task, one per seed: what scores and differences are made of."""
    rows: tuple[int, ...] = ()
    """Its places among the rows of its study: one per seed."""

    @property
    def key(self) -> str:
        """What tells it from all others on the board."""
        return f"{self.study}:{self.label}"


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
    """The tasks that are no part of averages: their maximum is not known, less is better, or a study lacks them."""
    studies: tuple[str, ...] = ()
    """The names of the studies that rows are of."""
    baseline: str = ""
    """What rows are compared with, as it was asked for; "" for fastv at the same budget, or else vanilla."""

    def called(self, line: Line) -> str:
        """A row's label, with its study where there are several."""
        return f"{line.study}: {line.label}" if len(self.studies) > 1 else line.label

    def of(self, study: str) -> Leaderboard:
        """The same with the rows of one study alone."""
        return replace(self, lines=tuple(line for line in self.lines if line.study == study))
