"""A p-value for a paired difference: exchange the two rows' answers image by image, and look how often it is as large.

Scores are functions of sums, so that an exchange is a sum with other signs. Images whose sums differ alike are
exchanged alike: only how many of them are exchanged matters, which is a binomial number. With few kinds of images all
cases are counted; otherwise they are drawn, the more the smaller p is.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import np
from finepruner_lmms.statistics.effects import NOISE
from finepruner_lmms.statistics.tally import Tally

if TYPE_CHECKING:
    from numpy import ndarray

Pair = tuple[Tally, Tally]
_EXACT = 20_000
"""Cases up to which all are counted."""
_DRAWS = (9_999, 90_000)
"""How many are drawn, and how many more where p is so small that the first say little of it."""
_RARE = 50


@dataclass(frozen=True, eq=False)
class _Kinds:
    """The images of one pool, by how the sums of a pair differ: `steps` `[K, k]`, each of `counts` `[K]` images."""

    steps: ndarray
    counts: ndarray


def exchange_p(pairs: Sequence[Pair]) -> float:
    """The two-sided p of the mean difference over tasks; images in one pool are exchanged in all of its tasks."""
    observed = _statistic(pairs, [one.sums.sum(0) - other.sums.sum(0) for one, other in pairs])
    if abs(float(observed[0])) <= NOISE:
        return 1.0
    pools: dict[str, list[int]] = {}
    for number, (one, _) in enumerate(pairs):
        pools.setdefault(one.pool, []).append(number)
    kinds = [_kinds([pairs[number] for number in numbers]) for numbers in pools.values()]
    least = abs(float(observed[0])) - NOISE
    cases = math.prod(int(count) + 1 for kind in kinds for count in kind.counts)
    if cases <= _EXACT:
        return _counted(pairs, pools, kinds, least)
    names = "\n".join(one.pool for one, _ in pairs) + str([len(one.images) for one, _ in pairs])
    rng = np.random.default_rng(zlib.crc32(names.encode()))
    hits = total = 0
    for draws in _DRAWS:
        for start in range(0, draws, 10_000):
            size = min(10_000, draws - start)
            signs = [_draw(rng, kind.counts, size) for kind in kinds]
            hits += int((np.abs(_exchanged(pairs, pools, kinds, signs)) >= least).sum())
        total += draws
        if hits >= _RARE:
            break
    return (hits + 1) / (total + 1)


def _kinds(pairs: Sequence[Pair]) -> _Kinds:
    """The kinds of images in one pool: the differences of all its tasks side by side."""
    images = pairs[0][0].images
    if any(one.images != images for one, _ in pairs):
        images = tuple(sorted(set().union(*(one.images for one, _ in pairs))))
    names = np.array(images)
    steps = []
    for one, other in pairs:
        step = np.zeros((len(images), one.sums.shape[1]))
        step[np.searchsorted(names, np.array(one.images))] = one.sums - other.sums
        steps.append(step)
    rows = np.round(np.concatenate(steps, axis=1), 9)
    rows = rows[(rows != 0).any(1)]
    if not len(rows):
        return _Kinds(rows, np.zeros(0, dtype=int))
    first = rows[np.arange(len(rows)), (rows != 0).argmax(1)]
    found, counts = np.unique(rows * np.sign(first)[:, None], axis=0, return_counts=True)
    return _Kinds(found, counts)


def _counted(pairs: Sequence[Pair], pools: dict[str, list[int]], kinds: Sequence[_Kinds], least: float) -> float:
    """All cases, each with its probability."""
    counts = [int(count) for kind in kinds for count in kind.counts]
    grids = np.meshgrid(*(np.arange(count + 1) for count in counts), indexing="ij")
    heads = np.stack([grid.reshape(-1) for grid in grids], axis=1)
    logs = np.zeros(len(heads))
    for place, count in enumerate(counts):
        ways = [math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1) for n in range(count + 1)]
        logs += (np.array(ways) - count * math.log(2))[heads[:, place]]
    signs, start = [], 0
    for kind in kinds:
        many = len(kind.counts)
        signs.append(2.0 * heads[:, start : start + many] - kind.counts)
        start += many
    far = np.abs(_exchanged(pairs, pools, kinds, signs)) >= least
    return min(1.0, float(np.exp(logs[far]).sum()))


def _draw(rng: np.random.Generator, counts: ndarray, draws: int) -> ndarray:
    """Sums of `counts` random signs `[draws, K]`: coins are the bits of random words."""
    found = np.empty((draws, len(counts)))
    for place, count in enumerate(counts.tolist()):
        words, rest = divmod(count, 64)
        heads = np.zeros(draws, dtype=np.int64)
        if words:
            heads += np.bitwise_count(rng.integers(0, 2**64, (draws, words), dtype=np.uint64)).sum(1, dtype=np.int64)
        if rest:
            heads += np.bitwise_count(rng.integers(0, 2**rest, draws, dtype=np.uint64))
        found[:, place] = 2 * heads - count
    return found


def _exchanged(
    pairs: Sequence[Pair], pools: dict[str, list[int]], kinds: Sequence[_Kinds], signs: Sequence[ndarray]
) -> ndarray:
    """The statistic in each case."""
    steps: list[ndarray] = [np.zeros(0)] * len(pairs)
    for numbers, kind, sign in zip(pools.values(), kinds, signs, strict=True):
        together = sign @ kind.steps
        start = 0
        for number in numbers:
            width = pairs[number][0].sums.shape[1]
            steps[number] = together[:, start : start + width]
            start += width
    return _statistic(pairs, steps)


def _statistic(pairs: Sequence[Pair], steps: Sequence[ndarray]) -> ndarray:
    """The mean difference where the sums of each pair differ by `steps`; what they add up to does not change."""
    found = []
    for (one, other), step in zip(pairs, steps, strict=True):
        both = one.sums.sum(0) + other.sums.sum(0)
        step = np.atleast_2d(step)
        found.append(one.percent((both + step) / 2) - other.percent((both - step) / 2))
    return np.mean(found, axis=0)
