"""Two rows that were asked the same questions: the difference of their scores, its interval, and a p-value.

The interval is that of the paired influence values with Student's t, and a floor: where discordant answers are rare,
an interval by what was seen is too narrow, so two answers count as unseen (D. G. Bonett, R. M. Price, Journal of
Educational and Behavioral Statistics 37, 2012). The p-value exchanges the two rows' answers image by image, which is
exact where neither differs from the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finepruner_lmms.lazy import np
from finepruner_lmms.statistics.effects import NOISE, Effect, combine, effect, seeds_as_one, t_tail
from finepruner_lmms.statistics.exchange import exchange_p
from finepruner_lmms.statistics.tally import Tally

FEW_DISCORDANT = 10
"""Below, a difference says little, whatever its interval."""
Seeds = Sequence[Tally]
"""The tallies of a row's seeds; one where it has none."""


@dataclass(frozen=True)
class Difference:
    """First minus second, in percent of the maximum.

    `error`, the floor included, the 95 % interval and `p` are None where there are fewer than two images. `won` and
    `lost` count the questions that the first answered better, and worse; of several seeds, their mean.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    p: float | None
    won: float
    lost: float
    questions: int
    images: int

    @property
    def discordant(self) -> float:
        """How many questions are answered better by one of the two."""
        return self.won + self.lost

    @property
    def holds_zero(self) -> bool:
        """Whether there is a 95 % interval, and 0 lies in it."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    def scaled(self, factor: float) -> Difference:
        """The same in another unit: MME's points, for example."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        error = None if self.error is None else abs(factor) * self.error
        return replace(self, value=factor * self.value, error=error, low=low, high=high)


def same_questions(first: Seeds, second: Seeds) -> bool:
    """Whether all were asked the same: the same documents, images and right answers."""
    asked = {(one.asked, one.questions, one.images) for one in (*first, *second)}
    return len(asked) == 1


def difference(first: Tally, second: Tally, *, test: bool = True) -> Difference:
    """The paired difference of two rows on one task. `ValueError` where they were asked different questions."""
    return difference_of_seeds([first], [second], test=test)


def difference_of_seeds(first: Seeds, second: Seeds, *, test: bool = True) -> Difference:
    """The same of rows with several seeds. Without `test`, p is None, which saves most of the time."""
    return average_difference({"": first}, {"": second}, test=test)


def average_difference(first: Mapping[Any, Seeds], second: Mapping[Any, Seeds], *, test: bool = True) -> Difference:
    """The paired difference averaged over tasks, or whatever the keys name; each has a tally per seed."""
    for task in first:
        if not same_questions(first[task], second[task]):
            raise ValueError(f"{task or 'the task'}: the two rows were asked different questions")
    found, floor = paired_effect(first, second)
    counts = [_won_and_lost(first[task], second[task]) for task in first]
    won, lost = sum(one for one, _ in counts), sum(other for _, other in counts)
    error = math.sqrt(found.variance + floor) if found.known else None
    low, high = (None, None) if error is None else found.around(error)
    p = _p(first, second, found, error) if test and error is not None else None
    questions = sum(tallies[0].questions for tallies in first.values())
    images = sum(len(one.images) for one in found.influences.values())
    return Difference(found.value, error, low, high, p, won, lost, questions, images)


def paired_effect(first: Mapping[Any, Seeds], second: Mapping[Any, Seeds]) -> tuple[Effect, float]:
    """The difference by image, averaged over tasks; and the variance of the answers that count as unseen."""
    parts, floor = [], 0.0
    for task, tallies in first.items():
        one, other = (seeds_as_one([effect(tally) for tally in seeds]) for seeds in (tallies, second[task]))
        parts += [(1 / len(first), one), (-1 / len(first), other)]
        floor += 2 * (tallies[0].unit / len(first)) ** 2
    return combine(parts), floor


def _won_and_lost(first: Seeds, second: Seeds) -> tuple[float, float]:
    pairs = [(one.scores, other.scores) for one in first for other in second]
    won = float(np.mean([(one > other + NOISE).sum() for one, other in pairs]))
    lost = float(np.mean([(one < other - NOISE).sum() for one, other in pairs]))
    return won, lost


def _p(first: Mapping[Any, Seeds], second: Mapping[Any, Seeds], found: Effect, error: float) -> float:
    if all(len(seeds) == 1 for rows in (first, second) for seeds in rows.values()):
        return exchange_p([(tallies[0], second[task][0]) for task, tallies in first.items()])
    return t_tail(found.value / error, found.dof)  # seeds cannot be exchanged one by one
