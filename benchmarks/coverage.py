"""How often the intervals hold what they promise, on simulated studies whose truth is known.

    python benchmarks/coverage.py [--repeats 4000] [--studies 1000] [--seed 1]

Methods answer the same questions about the same images. An answer is right where a normal number is below a limit; the
number has a part of the image, a part of the question and a part of the method's own, so that answers about one image
go together, as do those of several methods, and the true scores are known exactly. For each case and number of images:
in how many percent of the repeats the 95 % interval holds the truth, beside ± 1.96 SE. Then how often at least one of
60 rows that equal the baseline is called different, with Holm's correction and without, and how often the test of one
such row is below 5 %.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.statistics.differences import (
    Difference,
    average_difference,
    difference,
    difference_of_seeds,
    paired_effect,
)
from finepruner_lmms.statistics.effects import effect
from finepruner_lmms.statistics.families import holm
from finepruner_lmms.statistics.scores import Estimate, average, average_effect, estimate, relative
from finepruner_lmms.statistics.tally import Tally

IMAGES = (16, 30, 60, 120)
SAME_IMAGE, SAME_QUESTION, NEARLY_ALIKE = 0.25, 0.5, 0.72
"""Shares of the variance behind an answer: of the image, and of the question, where methods differ or hardly do."""
CATEGORIES, KINDS = 4, 3  # of MME, whose images have two questions each; of POPE's negatives, a yes and a no of each
NEVER = 1_000_000  # more images than there are
Rates = tuple[float, ...]


# -- answers ----------------------------------------------------------------------------------------------------------


def limit_of(rate: float, spread: float = 0.0) -> float:
    """Below which a share `rate` of normal numbers lies, whose variance is 1 + spread²."""
    return math.inf if rate >= 1 else NormalDist().inv_cdf(rate) * math.sqrt(1 + spread**2)


def answers(
    rng: np.random.Generator, images: int, rates: Rates, each: int, question: float = SAME_QUESTION, spreads: Rates = ()
) -> np.ndarray:
    """Right or wrong `[methods, images, each]`: method i is right on a share `rates[i]` of all questions.

    With `spreads`, it is off that by chance, as a row of one seed is off the mean of all seeds.
    """
    spreads = spreads or (0.0,) * len(rates)
    shared = math.sqrt(SAME_IMAGE) * rng.standard_normal((images, 1))
    shared = shared + math.sqrt(question) * rng.standard_normal((images, each))
    own = math.sqrt(1 - SAME_IMAGE - question) * rng.standard_normal((len(rates), images, each))
    own += (np.array(spreads) * rng.standard_normal(len(rates)))[:, None, None]
    return shared + own < np.array(list(map(limit_of, rates, spreads)))[:, None, None]


def both_right(rate: float) -> float:
    """The share of images of which both questions are answered right."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    alone = [NormalDist().cdf((limit_of(rate) - math.sqrt(SAME_IMAGE) * u) / math.sqrt(1 - SAME_IMAGE)) for u in nodes]
    return float((weights * np.square(alone)).sum() / weights.sum())


# -- what the benchmarks make of them ---------------------------------------------------------------------------------


def _tally(sums: np.ndarray, right: np.ndarray, percent: Callable[[np.ndarray], np.ndarray], **more: float) -> Tally:
    return Tally(
        _names(len(right)), sums.astype(float), np.arange(right.size), right.reshape(-1).astype(float), percent, **more
    )


def accuracy(right: np.ndarray) -> Tally:
    """Of answers `[images, each]`."""
    sums = np.column_stack([right.sum(1), np.full(len(right), right.shape[1])])
    return _tally(sums, right, lambda totals: 100 * totals[..., 0] / totals[..., 1])


def mme(right: np.ndarray) -> Tally:
    """Of pairs `[images, 2]`, images in turn from each category: accuracy and accuracy+ of each."""
    images, sums = np.arange(len(right)), np.zeros((len(right), 2 * CATEGORIES))
    sums[images, images % CATEGORIES] = 50 * right.sum(1) + 100 * right.all(1)
    sums[images, CATEGORIES + images % CATEGORIES] = 1
    return _tally(sums, right, lambda totals: _percent("mme", totals), pseudo=0.5)


def pope(right: np.ndarray) -> Tally:
    """Of answers `[images, 6]`, yes and no in turn: hits, false alarms, misses and counts of each kind of negatives."""
    yes, no = right[:, 0::2], right[:, 1::2]
    sums = np.concatenate([yes, ~no, ~yes, np.full((len(right), KINDS), 2)], axis=1)
    return _tally(sums, right, lambda totals: _percent("pope", totals))


@functools.cache
def _names(images: int) -> tuple[str, ...]:
    return tuple(f"image {number:06d}" for number in range(images))


def _percent(name: str, totals: np.ndarray) -> np.ndarray:
    benchmark = BENCHMARKS[name]
    return 100 * benchmark.points(totals) / benchmark.full(totals)


# -- cases ------------------------------------------------------------------------------------------------------------

Found = tuple[Difference | Estimate, float | None]
"""What the package says of one repeat, and the plain standard error."""


@dataclass(frozen=True)
class Case:
    """One kind of study: `run` simulates it once for so many images; `truth` is what the interval should hold.

    In `least` percent of the studies it must; from `sharp` images on in 97 at most. With fewer images, or where answers
    rarely differ, it is wider on purpose, for what was not seen.
    """

    name: str
    truth: float
    run: Callable[[np.random.Generator, int], Found]
    sharp: int = NEVER
    least: float = 93.0


def _paired(
    name: str, tally: Callable[[np.ndarray], Tally], rates: Rates, each: int, truth: float,
    sharp: int = NEVER, question: float = SAME_QUESTION, least: float = 93.0,
) -> Case:  # fmt: skip
    def run(rng: np.random.Generator, images: int) -> Found:
        one, other = map(tally, answers(rng, images, rates, each, question))
        plain = math.sqrt(np.square(effect(one).influences[""].values - effect(other).influences[""].values).sum())
        return difference(one, other, test=False), plain

    return Case(name, truth, run, sharp, least)


def _score(
    name: str, tally: Callable[[np.ndarray], Tally], rate: float, each: int, truth: float, sharp: int = NEVER
) -> Case:
    def run(rng: np.random.Generator, images: int) -> Found:
        found = estimate(tally(answers(rng, images, (rate,), each)[0]))
        return found, found.error

    return Case(name, truth, run, sharp)


def _mme_percent(rate: float) -> float:
    return 100 * (rate + both_right(rate)) / 2


def _tasks(rng: np.random.Generator, images: int, rates: Rates) -> list[dict[str, list[Tally]]]:
    """Three tasks of each method; two ask the same questions, as MMBench and MMBench-CN do."""
    english = answers(rng, images, rates * 2, 1, NEARLY_ALIKE)  # a method in both languages is as two methods
    other = answers(rng, images, rates, 4)
    found = []
    for number in range(len(rates)):
        alike = [accuracy(english[number]), accuracy(english[len(rates) + number])]
        tasks = {"mmbench": alike[0], "mmbench_cn": alike[1], "gqa": accuracy(other[number])}
        pools = {"mmbench": "mmbench", "mmbench_cn": "mmbench", "gqa": "gqa"}
        found.append({task: [_pooled(tally, pools[task])] for task, tally in tasks.items()})
    return found


def _pooled(tally: Tally, pool: str) -> Tally:
    return Tally(tally.images, tally.sums, tally.documents, tally.scores, tally.percent, pool)


def _averages(rng: np.random.Generator, images: int) -> Found:
    one, other = _tasks(rng, images, (0.75, 0.7))
    return average_difference(one, other, test=False), paired_effect(one, other)[0].error


def _average(rate: float) -> Case:
    def run(rng: np.random.Generator, images: int) -> Found:
        (one,) = _tasks(rng, images, (rate,))
        return average(one), average_effect(one).error

    return Case(f"average of 3 tasks, {100 * rate:.0f} %", 100 * rate, run, 60)


def _relative(rng: np.random.Generator, images: int) -> Found:
    one, unpruned = _tasks(rng, images, (0.7, 0.75))
    found = relative(one, unpruned)
    return found, found.error


def _relative_at_the_top(rng: np.random.Generator, images: int) -> Found:
    one, unpruned = _tasks(rng, images, (0.97, 0.98))
    found = relative(one, unpruned)
    return found, found.error


def _seeds(rng: np.random.Generator, images: int) -> Found:
    *seeds, baseline = map(accuracy, answers(rng, images, (0.7, 0.7, 0.7, 0.75), 4, spreads=(0.05, 0.05, 0.05, 0.0)))
    plain = paired_effect({"": seeds}, {"": [baseline]})[0].error
    return difference_of_seeds(seeds, [baseline], test=False), plain


CASES = (
    _paired("accuracy, 4 per image, 75 - 70 %", accuracy, (0.75, 0.7), 4, 5.0, 60),
    _paired("accuracy, 1 per image, 75 - 70 %", accuracy, (0.75, 0.7), 1, 5.0, 120),
    _paired("accuracy, 4 per image, 93 - 90 %", accuracy, (0.93, 0.9), 4, 3.0, 120, NEARLY_ALIKE),
    _paired("accuracy, 1 per image, 93 - 90 %", accuracy, (0.93, 0.9), 1, 3.0, NEVER, NEARLY_ALIKE),
    _paired("accuracy, 1 per image, 100 - 99 %", accuracy, (1.0, 0.99), 1, 1.0),
    _paired("MME, 75 - 70 % of the questions", mme, (0.75, 0.7), 2, _mme_percent(0.75) - _mme_percent(0.7), 60),
    _paired("MME, nearly alike, 93 - 92 %", mme, (0.93, 0.92), 2, _mme_percent(0.93) - _mme_percent(0.92), 120, 0.65),
    # three or four answers differ: half a question as the floor is little where one moves its pair as well
    _paired("MME, hardly different, 95 - 94 %", mme, (0.95, 0.94), 2, _mme_percent(0.95) - _mme_percent(0.94), NEVER,
            NEARLY_ALIKE, 88.0),
    _paired("POPE, F1 85 - 80 %", pope, (0.85, 0.8), 6, 5.0, 30),
    Case("average of 3 tasks, 75 - 70 %", 5.0, _averages, 120),
    Case("3 seeds - baseline, 70 - 75 %", -5.0, _seeds, 60),
    _score("accuracy, 4 per image, 75 %", accuracy, 0.75, 4, 75.0, 30),
    _score("accuracy, 1 per image, 90 %", accuracy, 0.9, 1, 90.0, 120),
    _score("accuracy, 1 per image, 99 %", accuracy, 0.99, 1, 99.0),
    _score("accuracy, 4 per image, 97 %", accuracy, 0.97, 4, 97.0),
    _score("MME, 75 % of the questions", mme, 0.75, 2, _mme_percent(0.75), 60),
    _score("POPE, F1 85 %", pope, 0.85, 6, 85.0, 60),
    _average(0.75),
    _average(0.9),
    Case("relative, 3 tasks, 70 / 75 %", 100 * 0.7 / 0.75, _relative, 120),
    Case("relative, 3 tasks, 97 / 98 %", 100 * 0.97 / 0.98, _relative_at_the_top),
)  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """In how many percent of the repeats the interval held the truth, and ± 1.96 SE did."""

    ours: float
    plain: float


def coverage(case: Case, images: int, repeats: int, seed: int) -> Coverage:
    """Simulate a case."""
    rng = np.random.default_rng([seed, images])
    ours = plain = 0
    for _ in range(repeats):
        found, error = case.run(rng, images)
        ours += found.low is not None and found.high is not None and found.low <= case.truth <= found.high
        plain += abs(found.value - case.truth) <= 1.96 * (error or 0.0)
    return Coverage(100 * ours / repeats, 100 * plain / repeats)


@dataclass(frozen=True)
class Alarms:
    """In how many percent of the studies a row that equals the baseline is called different; `single`: of the rows."""

    holm: float
    uncorrected: float
    single: float


def false_alarms(images: int, rows: int, studies: int, seed: int) -> Alarms:
    """Studies in which all rows have the baseline's true score."""
    rng = np.random.default_rng([seed, images])
    corrected = uncorrected = single = 0
    for _ in range(studies):
        baseline, *others = map(accuracy, answers(rng, images, (0.8,) * (rows + 1), 2))
        found = [difference(other, baseline).p for other in others]
        p = [1.0 if one is None else one for one in found]
        single += sum(one <= 0.05 for one in p)
        uncorrected += min(p) <= 0.05
        corrected += min(holm(p)) <= 0.05
    return Alarms(100 * corrected / studies, 100 * uncorrected / studies, 100 * single / (studies * rows))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4000, help="simulated studies for each case and size")
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of 60 rows")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    width = max(len(case.name) for case in CASES)
    noise = 100 * math.sqrt(0.95 * 0.05 / given.repeats)
    print(f"held by the 95 % interval / by ± 1.96 SE, in percent of {given.repeats} repeats (± {noise:.1f})")
    print(" " * width + "".join(f"{f'{images} images':>16}" for images in IMAGES))
    for case in CASES:
        found = [coverage(case, images, given.repeats, given.seed) for images in IMAGES]
        print(case.name.ljust(width) + "".join(f"{f'{one.ours:.1f} / {one.plain:.1f}':>16}" for one in found))
    print(f"\nfalse alarms at 5 %, in percent of {given.studies} studies of 60 rows that equal the baseline")
    for images in IMAGES:
        alarms = false_alarms(images, 60, given.studies, given.seed)
        print(
            f"{images:3} images: any row {alarms.holm:.1f} (Holm), {alarms.uncorrected:.1f} (uncorrected); "
            f"one row {alarms.single:.1f}"
        )


if __name__ == "__main__":
    main()
