"""How a task that is none of the ten is measured: lmms-eval's own metric, what is known of it, and its samples.

lmms-eval says of a metric its name and its direction. It does not say on which scale it is, and not whether the score
is a mean over questions; both are found out here, or said to be unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.benchmarks.record import Benchmark, Rows, Sample
from finepruner_lmms.lazy import np

SCALES = {
    "mmmu_acc": 1.0, "ocrbench_accuracy": 1.0, "seed_all": 1.0, "seed_image": 1.0, "seed_video": 1.0,
    "videomme_perception_score": 100.0,
}  # fmt: skip
"""What a perfect model gets, of metrics of lmms-eval 0.7.3 whose samples do not tell; read from their aggregations."""
_SHARE = re.compile(r"(^|_)(acc|accuracy|em|match|anls|relaxed|iou|correct|average|f1)(_|$|@)", re.IGNORECASE)
"""Names of metrics that are shares of right answers, where the scores of their samples lie between 0 and 1."""


@dataclass(frozen=True)
class Measured:
    """What a task's metric is. `metric` is its key in lmms-eval's results.

    `scale` is what a perfect model gets, None where that is not known or where less is better. `per_sample`: each
    question has a score, and the metric is their mean.
    """

    metric: str
    higher_is_better: bool
    scale: float | None
    per_sample: bool


def measure(
    metrics: Mapping[str, float], directions: Mapping[str, bool], samples: Sequence[Sample]
) -> tuple[Measured, dict[str, bool]] | None:
    """The metric that stands for a task, the first that is a number; and the direction of each, by its key.

    `directions` are those of the task's metrics, in its order. None where no metric is a number.
    """
    found: dict[str, bool] = {}
    for name, higher in directions.items():
        found |= {key: bool(higher) for key in metrics if key.partition(",")[0] == name}
    key = next(iter(found), None)
    if key is None:
        return None
    name, value, higher = key.partition(",")[0], metrics[key], found[key]
    scores = [score_of(sample.get(name)) for sample in samples]
    counted = [score for score in scores if score is not None]
    whole = all(score is not None or sample.get(name) is None for score, sample in zip(scores, samples, strict=True))
    per_sample = (
        bool(counted) and whole and math.isclose(math.fsum(counted) / len(counted), value, rel_tol=1e-6, abs_tol=1e-9)
    )
    scale = SCALES.get(name)
    if scale is None and per_sample and _SHARE.search(name) and all(0 <= score <= 1 for score in counted):
        scale = 1.0
    if not higher or (scale is not None and not 0 <= value <= scale):
        scale = None
    return Measured(key, higher, scale, per_sample), found


def score_of(score: Any) -> float | None:
    """A question's score: a number, or that in a mapping's `score`. None where there is none."""
    if isinstance(score, Mapping):
        score = score.get("score")
    try:
        value = float(score) if not isinstance(score, str) and score is not None else math.nan
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def benchmark_of(task: str, about: Measured) -> Benchmark:
    """A task as the ten are read: its percentage is that of the scale, or the metric itself where none is known."""
    name = about.metric.partition(",")[0]

    def rows(samples: Sequence[Sample]) -> Rows:
        scores = [score_of(sample.get(name)) for sample in samples]
        table = [(0.0, 0.0) if score is None else (score, 1.0) for score in scores]
        return np.array(table, dtype=float), [sample["doc_id"] for sample in samples]

    full = about.scale or 100.0
    return _Other(
        name=task,
        title=title_of(task, about),
        metric=about.metric,
        image_column="",
        rows=rows,
        points=_mean,
        full=lambda totals: np.full(totals.shape[:-1], full),
        factor=100 / full,
        bounded=about.scale is not None,
    )


def title_of(task: str, about: Measured | None) -> str:
    """A task's name, with an arrow where less is better."""
    return f"{task} ↓" if about is not None and not about.higher_is_better else task


def _mean(totals: np.ndarray) -> np.ndarray:
    return totals[..., 0] / totals[..., 1]


class _Other(Benchmark):
    """One of lmms-eval's own."""

    @property
    def task(self) -> str:
        """The name of the lmms-eval task."""
        return self.name


def pictures_of(documents: Any) -> list[str]:
    """What each question's picture is: its content, where the data has a column of pictures; else each stands alone."""
    import datasets

    from finepruner_lmms.benchmarks.images import image_names

    names = [name for name, feature in documents.features.items() if isinstance(feature, datasets.Image)]
    if not names:
        return [f"question {place}" for place in range(len(documents))]
    return image_names(documents, "image" if "image" in names else names[0])
