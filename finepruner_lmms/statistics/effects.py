"""A quantity with what each image adds to it: the base of every error, interval and average.

Influence values are those of the jackknife: how far the score moves where an image is left out. They are
deterministic, and they add: the influence on a mean, a difference or a ratio is that combination of influences, so
that what two rows or two tasks share cancels by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import np
from finepruner_lmms.statistics.tally import Tally

if TYPE_CHECKING:
    from numpy import ndarray

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""
NOISE = 1e-9
"""Of a percentage: what rounding leaves where nothing differs."""


@dataclass(frozen=True, eq=False)
class Influence:
    """What each image of a pool adds: `values` `[G]`, of mean 0; their variance is G / (G - 1) times the squares."""

    images: tuple[str, ...]
    values: ndarray

    @property
    def variance(self) -> float:
        """Of the quantity, by these images. 0 where there is one image, of which nothing is known."""
        groups = len(self.images)
        return 0.0 if groups < 2 else float(groups / (groups - 1) * np.square(self.values).sum())


@dataclass(frozen=True)
class Spare:
    """A variance that no image carries: of seeds, or of what was too rare to be seen."""

    variance: float
    dof: float = math.inf


@dataclass(frozen=True, eq=False)
class Effect:
    """A quantity, its influences by pool of images, and variances besides."""

    value: float
    influences: dict[str, Influence]
    spare: tuple[Spare, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there are two images at least in every pool."""
        return bool(self.influences) and all(len(one.images) > 1 for one in self.influences.values())

    @property
    def variance(self) -> float:
        """The squared standard error."""
        return sum(one.variance for one in self.influences.values()) + sum(one.variance for one in self.spare)

    @property
    def error(self) -> float | None:
        """The standard error; None where it was not measured, because of one image, or because nothing differs."""
        error = math.sqrt(self.variance)
        return error if self.known and error > NOISE else None

    @property
    def dof(self) -> float:
        """Degrees of freedom, by Welch and Satterthwaite where several variances add up."""
        terms = [(one.variance, len(one.images) - 1.0) for one in self.influences.values()]
        terms += [(one.variance, one.dof) for one in self.spare]
        total = sum(variance for variance, _ in terms)
        if total <= NOISE**2:
            return max(1.0, min((dof for _, dof in terms), default=1.0))
        return max(1.0, total**2 / sum(variance**2 / dof for variance, dof in terms if variance))

    def around(self, error: float) -> tuple[float, float]:
        """The 95 % interval of that error, by Student's t."""
        half = t_quantile(self.dof) * error
        return self.value - half, self.value + half


def effect(tally: Tally) -> Effect:
    """A score and how it hangs on each image."""
    groups = len(tally.images)
    if groups < 2:
        return Effect(tally.value, {tally.pool: Influence(tally.images, np.zeros(groups))})
    without = tally.percent(tally.sums.sum(0) - tally.sums)
    values = (without.mean() - without) * (groups - 1) / groups
    return Effect(tally.value, {tally.pool: Influence(tally.images, values)})


def combine(parts: Iterable[tuple[float, Effect]]) -> Effect:
    """The sum of weighted quantities; images of one name in one pool are the same in all."""
    parts = list(parts)
    pools: dict[str, list[tuple[float, Influence]]] = {}
    for weight, part in parts:
        for pool, influence in part.influences.items():
            pools.setdefault(pool, []).append((weight, influence))
    return Effect(
        sum(weight * part.value for weight, part in parts),
        {pool: _added(found) for pool, found in pools.items()},
        tuple(Spare(weight**2 * one.variance, one.dof) for weight, part in parts for one in part.spare),
    )


def _added(found: Sequence[tuple[float, Influence]]) -> Influence:
    images = found[0][1].images
    if any(one.images != images for _, one in found):
        images = tuple(sorted(set().union(*(one.images for _, one in found))))
    values = np.zeros(len(images))
    for weight, one in found:
        places = slice(None) if one.images == images else np.searchsorted(np.array(images), np.array(one.images))
        values[places] += weight * one.values
    return Influence(images, values)


def seeds_as_one(effects: Sequence[Effect]) -> Effect:
    """The mean over seeds: the error over images of each question's mean, and the seeds' spread by their number."""
    many = len(effects)
    mean = combine([(1 / many, one) for one in effects])
    if many < 2:
        return mean
    spread = float(np.var([one.value for one in effects], ddof=1)) / many
    return Effect(mean.value, mean.influences, (*mean.spare, Spare(spread, many - 1.0)))


def t_quantile(dof: float) -> float:
    """The 97.5 % point of Student's t."""
    from scipy.special import stdtrit

    return Z if math.isinf(dof) else float(stdtrit(dof, 0.975))


def t_tail(statistic: float, dof: float) -> float:
    """The two-sided p of a t statistic."""
    from scipy.special import ndtr, stdtr

    tail = ndtr(-abs(statistic)) if math.isinf(dof) else stdtr(dof, -abs(statistic))
    return float(2 * tail)
