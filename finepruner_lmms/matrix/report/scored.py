"""A score on the leaderboard: as the field prints it, and as a share of the maximum, with errors and intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.records import Measure, Result
from finepruner_lmms.statistics.scores import over_seeds
from finepruner_lmms.statistics.tally import Tally

Tallies = dict[str, tuple[Tally, ...]]
"""By task, a tally per seed; none where questions have no scores."""


@dataclass(frozen=True)
class Score:
    """A score as the field prints it (percent; MME in points) and as a share of the maximum, with standard errors.

    An error is None where it was not measured: fewer than two images, or nothing that differs between them. `low` to
    `high` is the 95 % interval of `percent`, `shown_low` to `shown_high` that of `shown`. `images` is the number of
    groups of questions that errors rest on.
    """

    shown: float
    shown_error: float | None
    percent: float
    percent_error: float | None
    measure: Measure | None = None
    """How a task that is none of the ten is measured. Without a scale, `percent` is the metric itself."""
    low: float | None = None
    high: float | None = None
    shown_low: float | None = None
    shown_high: float | None = None
    questions: int = 0
    images: int = 0
    beside: dict[str, float] = field(default_factory=dict)
    """Other figures of the benchmark as they are shown, by what people call them: MME's `cognition` and `total`."""
    protocol: Protocol = LLAVA
    """By whose rules answers were scored."""

    @property
    def counts(self) -> bool:
        """Whether it is a share of a known maximum, and so a part of averages."""
        return self.measure is None or self.measure.scale is not None

    @classmethod
    def over_seeds(cls, found: Sequence[Score], tallies: Sequence[Tally]) -> Score:
        """The mean over seeds; `tallies` are theirs, or none where questions have no scores."""
        shown = statistics.fmean(score.shown for score in found)
        names = [name for name in found[0].beside if all(name in score.beside for score in found)]
        beside = {name: statistics.fmean(score.beside[name] for score in found) for name in names}
        like = replace(found[0], beside=beside)
        return _estimated(shown, statistics.fmean(score.percent for score in found), tallies, like)


def estimate_score(task: str, results: Sequence[Result], tallies: Sequence[Tally]) -> Score:
    """The score that a result states, with what its answers say of its error."""
    (result,) = results
    benchmark = benchmark_for(task, result)
    shown, percent = benchmark.shown(result.metrics[benchmark.metric]), result.percent
    if result.measure is not None and result.measure.scale is None:  # the metric itself
        percent = shown
    assert percent is not None, "a valid result has what is scored"
    like = Score(shown, None, percent, None, result.measure, questions=result.answered)
    like = replace(like, beside=benchmark.shown_beside(result.metrics), protocol=result.spec.protocol)
    return _estimated(shown, percent, tallies, like)


def _estimated(shown: float, percent: float, tallies: Sequence[Tally], like: Score) -> Score:
    if not tallies:
        return replace(like, shown=shown, percent=percent)
    found = over_seeds(tallies)
    as_shown = found.scaled(tallies[0].per_percent)
    return Score(
        shown, as_shown.error, percent, found.error, like.measure, found.low, found.high, as_shown.low, as_shown.high,
        found.questions, found.images, like.beside, like.protocol,
    )  # fmt: skip
