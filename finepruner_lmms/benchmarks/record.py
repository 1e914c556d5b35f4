"""One benchmark of the leaderboard as a record: its task, its metric, and how both follow from logged samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from finepruner_lmms.benchmarks.limits import EACH_ALONE, Sampling
from finepruner_lmms.lazy import np
from finepruner_lmms.statistics.scores import estimate
from finepruner_lmms.statistics.tally import Tally, sum_by_image

Sample = dict[str, Any]
"""A question as lmms-eval logs it: `doc_id`, and what the task's `process_results` gives by the metric's name."""
Rows: TypeAlias = "tuple[np.ndarray, list[int]]"
Images = Sequence[Any] | Mapping[int, Any]


class Figures(NamedTuple):
    """What samples come to: the metric, its share of the maximum in percent, and the standard error of that."""

    value: float
    percent: float
    standard_error: float | None


@dataclass(frozen=True)
class Beside:
    """Another figure of a benchmark, told beside its score.

    `metric` is its key in lmms-eval's results, `title` what people call it, `factor` what it is multiplied by to be
    shown. `of` is the metric of kept samples, None where they do not have it; without it, samples do not tell. It is
    told only of results that have the metric `needs`, too.
    """

    metric: str
    title: str
    factor: float = 1.0
    of: Callable[[Sequence[Sample]], float | None] | None = None
    needs: str = ""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the leaderboard.

    `metric` is the key in lmms-eval's results. A score is a function of sums over questions: `rows` turns logged
    samples into additive rows `[m, k]` and names the document of each; `points` turns their sums `[..., k]` into the
    metric, and `full` says what a perfect model gets. `image_column` tells which questions share an image: a name, or
    the pictures themselves. `sampling` says what a limit must keep together and spread over.
    """

    name: str
    title: str
    metric: str
    image_column: str
    rows: Callable[[Sequence[Sample]], Rows]
    points: Callable[[np.ndarray], np.ndarray]
    full: Callable[[np.ndarray], np.ndarray]
    factor: float = 1.0
    """By what the metric is multiplied to be as the field prints it: 100 makes a share a percentage."""
    judged: bool = False
    """Whether only a judge can score the answers, so that they have no score when lmms-eval is done."""
    sampling: Sampling = EACH_ALONE
    each: Callable[[Sequence[Sample]], Sequence[tuple[int, float]]] | None = None
    """The documents that count, with the score of each from 0 to 1; None where each row is a score and a count."""
    bounded: bool = True
    """Whether a score lies between 0 and the maximum."""
    pool: str = ""
    """The benchmark whose images it shares; its own where that is "". Equal names in one pool are one image."""
    pseudo: float = 1.0
    """What an answer is worth that a difference is taken to have missed, in questions."""

    beside: tuple[Beside, ...] = ()
    """What is told beside the score, never instead of it."""
    entry: Callable[[Sample], Any] | None = None
    """What is kept of a logged sample as its score, where that is more than what its metric says."""

    @property
    def task(self) -> str:
        """The name of the lmms-eval task."""
        return f"fp_{self.name}"

    def kept(self, sample: Sample) -> Any:
        """What is kept of a logged sample as its score: what `rows` reads under the metric's name."""
        return sample.get(self.metric.partition(",")[0]) if self.entry is None else self.entry(sample)

    def shown_beside(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The figures beside the score in lmms-eval's results, as they are shown, by their titles."""
        there = [one for one in self.beside if one.metric in metrics and (one.needs or one.metric) in metrics]
        return {one.title: one.factor * metrics[one.metric] for one in there}

    def beside_of(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The figures beside the score that kept samples tell, by the metric's key."""
        found = {one.metric: one.of(samples) for one in self.beside if one.of is not None}
        return {metric: value for metric, value in found.items() if value is not None}

    def percent(self, samples: Sequence[Sample]) -> float:
        """The score as a share of what a perfect model gets, 0 to 100."""
        total = self._rows(samples)[0].sum(0)
        return float(100 * self.points(total) / self.full(total))

    def value(self, samples: Sequence[Sample]) -> float:
        """The metric recomputed from logged samples; it must equal lmms-eval's own."""
        return float(self.points(self._rows(samples)[0].sum(0)))

    def shown(self, value: float) -> float:
        """The metric as the field prints it: in percent, MME in points."""
        return self.factor * value

    def standard_error(self, samples: Sequence[Sample], images: Images) -> float | None:
        """The standard error of `percent` over images; `images[doc_id]` names the image.

        None where it is not measured: with fewer than two images, or where nothing differs between images.
        """
        return estimate(self.tally(samples, images)).error

    def tally(self, samples: Sequence[Sample], images: Images) -> Tally:
        """What samples come to, by image; `images[doc_id]` names the image."""
        rows, documents = self._rows(samples)
        names, sums = sum_by_image(rows, [str(images[document]) for document in documents])
        numbers, scores = self._questions(samples, rows, documents)
        full = self.full(sums.sum(0))
        return self.tally_of(names, sums, numbers, scores, self.factor * float(full) / 100, _asked(samples, images))

    def tally_of(
        self, images: tuple[str, ...], sums: np.ndarray, documents: np.ndarray, scores: np.ndarray, per_percent: float,
        asked: str,
    ) -> Tally:  # fmt: skip
        """A tally of what is known already."""
        return Tally(
            images, sums, documents, scores, self.share, self.pool or self.name, self.pseudo, per_percent,
            self.bounded, asked,
        )  # fmt: skip

    def share(self, totals: np.ndarray) -> np.ndarray:
        """The score of totals `[..., k]` in percent of the maximum."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 100 * self.points(totals) / self.full(totals)

    def _questions(
        self, samples: Sequence[Sample], rows: np.ndarray, documents: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The questions one by one, ascending, and the score of each from 0 to 1: what a pair wins and loses."""
        if self.each is None:
            counted = rows[:, 1] > 0
            scores = self.points(rows[counted]) / self.full(rows[counted])
            numbers = np.array(documents, dtype=np.int64)[counted]
        else:
            found = self.each(samples)
            numbers = np.array([number for number, _ in found], dtype=np.int64)
            scores = np.array([score for _, score in found], dtype=float)
        order = np.argsort(numbers, kind="stable")
        return numbers[order], scores[order]

    def figures(self, samples: Sequence[Sample], images: Images) -> Figures:
        """All that is shown of logged samples: `value`, `percent` and `standard_error` at once."""
        tally = self.tally(samples, images)
        return Figures(float(self.points(tally.sums.sum(0))), tally.value, estimate(tally).error)

    def _rows(self, samples: Sequence[Sample]) -> Rows:
        if not samples:
            raise ValueError(f"{self.name}: no samples")
        return self.rows(samples)


def _asked(samples: Sequence[Sample], images: Images) -> str:
    """A hash of which questions were asked, about which images, with which right answers."""
    questions = sorted((int(s["doc_id"]), str(images[s["doc_id"]]), str(s.get("target"))) for s in samples)
    return hashlib.sha256(repr(questions).encode()).hexdigest()[:16]
