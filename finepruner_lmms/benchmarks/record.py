"""One benchmark of the leaderboard as a record: its task, its metric, and how both follow from logged samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from finepruner_lmms.benchmarks.limits import EACH_ALONE, Sampling
from finepruner_lmms.benchmarks.statistics import bootstrap_totals, spread
from finepruner_lmms.lazy import np

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
    shown. `of` is the metric of kept samples, None of them that do not have it; without it, samples do not tell.
    """

    metric: str
    title: str
    factor: float = 1.0
    of: Callable[[Sequence[Sample]], float | None] | None = None


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
        """The standard error of `percent`, by 1000 bootstrap draws of images; `images[doc_id]` names the image.

        None where it is not measured: with fewer than two images, or where all draws agree (at 0 % and 100 %).
        """
        return spread(self.replicates(samples, images))

    def replicates(self, samples: Sequence[Sample], images: Images) -> np.ndarray:
        """`percent` of 1000 bootstrap draws of images. The same images give the same draws, so two methods pair up."""
        return self._replicates(*self._rows(samples), images)

    def _replicates(self, rows: np.ndarray, documents: list[int], images: Images) -> np.ndarray:
        totals = bootstrap_totals(rows, [str(images[document]) for document in documents], self.name)
        return 100 * self.points(totals) / self.full(totals)

    def figures(self, samples: Sequence[Sample], images: Images) -> Figures:
        """All that is shown of logged samples: `value`, `percent` and `standard_error` at once."""
        rows, documents = self._rows(samples)
        total = rows.sum(0)
        value, full = self.points(total), self.full(total)
        error = spread(self._replicates(rows, documents, images))
        return Figures(float(value), float(100 * value / full), error)

    def _rows(self, samples: Sequence[Sample]) -> Rows:
        if not samples:
            raise ValueError(f"{self.name}: no samples")
        return self.rows(samples)
