"""A score with its 95 % interval: of one task, averaged over tasks, and relative to the unpruned model.

Intervals of shares are Wilson's, which neither leave 0 to 100 nor shrink to nothing at its ends, with as many
effective questions as the standard error over images stands for. Source: E. B. Wilson, JASA 22 (1927); effective
sample sizes as in the analysis of surveys (E. L. Korn, B. I. Graubard, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finepruner_lmms.statistics.effects import NOISE, Effect, Spare, Z, combine, effect, seeds_as_one, t_quantile
from finepruner_lmms.statistics.tally import Tally

FEW_IMAGES = 30
"""Below, intervals are less sure than they say."""


@dataclass(frozen=True)
class Estimate:
    """A score, its standard error over images and its 95 % interval, in percent of the maximum.

    The error is None where it was not measured; the interval where nothing can be said, as of one image of a score
    that is no share. `images` is the number of groups that the error rests on.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    questions: int
    images: int

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        error = None if self.error is None else abs(factor) * self.error
        return replace(self, value=factor * self.value, error=error, low=low, high=high)


def estimate(tally: Tally) -> Estimate:
    """The score of one row on one task."""
    return over_seeds([tally])


def over_seeds(tallies: Sequence[Tally]) -> Estimate:
    """The mean score of rows that differ in their seed alone, and were asked the same."""
    first = tallies[0]
    found = seeds_as_one([effect(one) for one in tallies])
    low, high = _wilson(found, len(first.images)) if first.bounded else _student(found)
    return Estimate(found.value, found.error, low, high, first.questions, len(first.images))


def average(tasks: Mapping[str, Sequence[Tally]]) -> Estimate:
    """The mean over tasks; each has a tally per seed. It is a share, too, so that its interval is Wilson's."""
    found = average_effect(tasks)
    plain = _whole(found, tasks)
    if not found.known or not all(tallies[0].bounded for tallies in tasks.values()):
        return plain
    low, high = _wilson(found, plain.images)
    return replace(plain, low=low, high=high)


def relative(tasks: Mapping[str, Sequence[Tally]], unpruned: Mapping[str, Sequence[Tally]]) -> Estimate:
    """The mean over tasks of a score divided by the unpruned model's, in percent; its error by the delta method.

    Two rows are compared in it, so its interval has the floor of a difference, for discordant answers not seen.
    """
    parts, floor = [], 0.0
    for task, tallies in tasks.items():
        one, whole = task_effect(tallies), task_effect(unpruned[task])
        ratio = 100 * one.value / whole.value
        shared = combine([(100 / whole.value, one), (-ratio / whole.value, whole)])
        parts.append((1 / len(tasks), replace(shared, value=ratio)))
        floor += 2 * (100 * tallies[0].unit / whole.value / len(tasks)) ** 2
    return _whole(combine(parts), tasks, floor)


def relative_of_means(tasks: Mapping[str, Sequence[Tally]], unpruned: Mapping[str, Sequence[Tally]]) -> Estimate:
    """The other published convention: the average divided by the unpruned model's."""
    one, whole = average_effect(tasks), average_effect({task: unpruned[task] for task in tasks})
    ratio = 100 * one.value / whole.value
    shared = combine([(100 / whole.value, one), (-ratio / whole.value, whole)])
    floor = sum(2 * (100 * tallies[0].unit / whole.value / len(tasks)) ** 2 for tallies in tasks.values())
    return _whole(replace(shared, value=ratio), tasks, floor)


def average_effect(tasks: Mapping[str, Sequence[Tally]]) -> Effect:
    """The mean over tasks, by image."""
    return combine([(1 / len(tasks), task_effect(tallies)) for tallies in tasks.values()])


def task_effect(tallies: Sequence[Tally]) -> Effect:
    """A task's score as a part of a mean over tasks.

    Where nothing differs between images, as at 100 %, it counts with the spread that Wilson's interval of as many
    images has, and not with none.
    """
    found, images = seeds_as_one([effect(one) for one in tallies]), len(tallies[0].images)
    if images < 2 or found.error is not None or not tallies[0].bounded:
        return found
    share = min(1.0, max(0.0, found.value / 100))
    variance = (share * (1 - share) / images + Z**2 / (4 * images**2)) / (1 + Z**2 / images) ** 2
    return replace(found, spare=(*found.spare, Spare(100**2 * variance, images - 1.0)))


def _whole(found: Effect, tasks: Mapping[str, Sequence[Tally]], floor: float = 0.0) -> Estimate:
    """`floor` is a variance that the interval has besides, and the error has not."""
    low, high = found.around(math.sqrt(found.variance + floor)) if floor and found.known else _student(found)
    questions = sum(tallies[0].questions for tallies in tasks.values())
    images = sum(len(influence.images) for influence in found.influences.values())
    return Estimate(found.value, found.error, low, high, questions, images)


def _student(found: Effect) -> tuple[float | None, float | None]:
    return (None, None) if found.error is None else found.around(found.error)


def _wilson(found: Effect, images: int) -> tuple[float, float]:
    """Wilson's interval: of the images where no error was measured, of the effective number of questions elsewhere."""
    share = min(1.0, max(0.0, found.value / 100))
    effective = float(images)
    inside = share * (1 - share)
    if found.error is not None and inside > NOISE:
        effective = inside / (found.error / 100) ** 2 * (Z / t_quantile(found.dof)) ** 2
    centre = share + Z**2 / (2 * effective)
    half = Z * math.sqrt(inside / effective + Z**2 / (4 * effective**2))
    low, high = ((centre + sign * half) / (1 + Z**2 / effective) for sign in (-1, 1))
    return 100 * (0.0 if share <= NOISE else max(0.0, low)), 100 * (1.0 if share >= 1 - NOISE else min(1.0, high))
