"""The ten benchmarks: their tasks, metrics and scales, and the standard error of a score.

A score is a function of sums over questions, so its standard error is bootstrapped over images (questions about one
image are not independent) by resampling these sums. Nothing here imports lmms-eval or torch.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Sample = dict[str, Any]
Rows = tuple[np.ndarray, list[int]]
_REPLICATES = 1000


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the leaderboard.

    `metric` is the key in lmms-eval's results. `rows` turns logged samples into additive rows `[m, k]` and names the
    document of each; `points` turns their sums `[..., k]` into the metric, and `full` says what a perfect model
    gets. `image_column` tells which questions share an image: a name, or the pictures themselves.
    """

    name: str
    title: str
    metric: str
    image_column: str
    rows: Callable[[Sequence[Sample]], Rows]
    points: Callable[[np.ndarray], np.ndarray]
    full: Callable[[np.ndarray], np.ndarray]
    judged: bool = False
    """Whether only a judge can score the answers, so that they have no score when lmms-eval is done."""

    @property
    def task(self) -> str:
        """The name of the lmms-eval task."""
        return f"fp_{self.name}"

    def percent(self, samples: Sequence[Sample]) -> float:
        """The score as a share of what a perfect model gets, 0 to 100."""
        total = self._rows(samples)[0].sum(0)
        return float(100 * self.points(total) / self.full(total))

    def value(self, samples: Sequence[Sample]) -> float:
        """The metric recomputed from logged samples; it must equal lmms-eval's own."""
        return float(self.points(self._rows(samples)[0].sum(0)))

    def shown(self, value: float) -> float:
        """The metric as the field prints it: in percent, MME in points."""
        return value if self.name in ("mme", "mmbench", "mmbench_cn", "mmvet") else 100 * value

    def standard_error(self, samples: Sequence[Sample], images: Sequence[Any] | dict[int, Any]) -> float:
        """The standard error of `percent`, by 1000 bootstrap draws of images; `images[doc_id]` names the image."""
        return float(self.replicates(samples, images).std(ddof=1))

    def replicates(self, samples: Sequence[Sample], images: Sequence[Any] | dict[int, Any]) -> np.ndarray:
        """`percent` of 1000 bootstrap draws of images. The same images give the same draws, so two methods pair up."""
        rows, documents = self._rows(samples)
        names, inverse = np.unique([str(images[document]) for document in documents], return_inverse=True)
        sums = np.zeros((len(names), rows.shape[1]))
        np.add.at(sums, inverse, rows)
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        scores = []
        step = max(1, 2_000_000 // len(names))  # replicates at once, so that memory stays small
        for start in range(0, _REPLICATES, step):
            count = min(step, _REPLICATES - start)
            draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
            totals = draws @ sums
            scores.append(100 * self.points(totals) / self.full(totals))
        return np.concatenate(scores)

    def _rows(self, samples: Sequence[Sample]) -> Rows:
        if not samples:
            raise ValueError(f"{self.name}: no samples")
        return self.rows(samples)


def image_names(documents: Any, column: str) -> list[str]:
    """The image of each question of a `datasets.Dataset`, by name, or by content where `column` holds pictures."""
    import datasets

    if not isinstance(documents.features[column], datasets.Image):
        return [str(name) for name in documents.select_columns([column])[column]]
    stored = documents.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    pictures = (row[column]["bytes"] or Path(row[column]["path"]).read_bytes() for row in stored)
    return [hashlib.sha256(picture).hexdigest()[:16] for picture in pictures]


def _mean_rows(samples: Sequence[Sample]) -> Rows:
    """Accuracy: score and count."""
    return np.array([[float(s["exact_match"]), 1.0] for s in samples]), [s["doc_id"] for s in samples]


def _mean(totals: np.ndarray) -> np.ndarray:
    return totals[..., 0] / np.maximum(totals[..., 1], 1)


def _one(totals: np.ndarray) -> np.ndarray:
    return np.ones(totals.shape[:-1])


def _hundred(totals: np.ndarray) -> np.ndarray:
    return np.full(totals.shape[:-1], 100.0)


def _pope_rows(samples: Sequence[Sample]) -> Rows:
    """True positives, false positives, false negatives of "yes" and the count, each by kind of negatives."""
    entries = [sample["pope_f1_mean"] for sample in samples]
    kinds = sorted({entry["category"] for entry in entries})
    rows = np.zeros((len(entries), 4, len(kinds)))
    for row, entry in zip(rows, entries, strict=True):
        said, true = entry["prediction"], entry["ground_truth"]
        outcome = [said == true == "yes", said == "yes" and true == "no", said == "no" and true == "yes", True]
        row[:, kinds.index(entry["category"])] = outcome
    return rows.reshape(len(entries), -1), [s["doc_id"] for s in samples]


def _f1_mean(totals: np.ndarray) -> np.ndarray:
    """The mean over the kinds of negatives that were asked of the F1 of "yes"."""
    hits, wrong, missed, counts = np.split(totals, 4, axis=-1)
    precision = hits / np.maximum(hits + wrong, 1)
    recall = hits / np.maximum(hits + missed, 1)
    both = precision + recall
    f1 = 2 * precision * recall / np.where(both > 0, both, 1)
    return f1.sum(-1) / np.maximum((counts > 0).sum(-1), 1)


def _mme_rows(samples: Sequence[Sample]) -> Rows:
    """A row a pair of questions: accuracy plus accuracy+ of its category (0 to 200), and the count, by category.

    A question whose partner was not asked is left out, as the task does.
    """
    pairs: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        if (entry := sample.get("mme_perception_score")) is not None:
            pairs.setdefault((entry["category"], entry["question_id"]), []).append(sample)
    pairs = {key: pair for key, pair in pairs.items() if len(pair) == 2}
    categories = sorted({category for category, _ in pairs})
    rows, documents = np.zeros((len(pairs), 2 * len(categories))), []
    for row, ((category, _), pair) in zip(rows, pairs.items(), strict=True):
        scores = [sample["mme_perception_score"]["score"] for sample in pair]
        place = categories.index(category)
        row[place] = 100 * sum(scores) / len(scores) + 100 * (sum(scores) == 2)
        row[len(categories) + place] = 1
        documents.append(pair[0]["doc_id"])
    return rows, documents


def _mme(totals: np.ndarray) -> np.ndarray:
    scores, counts = np.split(totals, 2, axis=-1)
    return (scores / np.maximum(counts, 1)).sum(-1)


def _mme_full(totals: np.ndarray) -> np.ndarray:
    return 200.0 * (np.split(totals, 2, axis=-1)[1] > 0).sum(-1)


def _mmbench_rows(samples: Sequence[Sample]) -> Rows:
    """Circular: a question counts only if it is right in every order of its options."""
    from finepruner_lmms.benchmarks.mmbench import circular_hits

    entries = {int(s["gpt_eval_score"]["index"]): s for s in samples}
    hits = circular_hits([s["gpt_eval_score"] for s in samples])
    return np.array([[100.0 * hit, 1.0] for hit in hits.values()]), [entries[index]["doc_id"] for index in hits]


def _mmvet_rows(samples: Sequence[Sample]) -> Rows:
    """The judge's score in percent, and the count."""
    entries = [s["gpt_eval_score"] for s in samples]
    if unjudged := [str(entry["question_id"]) for entry in entries if "score" not in entry]:
        raise ValueError(f"mmvet: {len(unjudged)} answers are not judged, such as that to {unjudged[0]}")
    return np.array([[100.0 * float(entry["score"]), 1.0] for entry in entries]), [s["doc_id"] for s in samples]


def _benchmarks() -> list[Benchmark]:
    accuracy: dict[str, Any] = {"metric": "exact_match,none", "points": _mean, "full": _one}
    circular: dict[str, Any] = {"metric": "gpt_eval_score,none", "points": _mean, "full": _hundred}
    return [
        Benchmark("vqav2", "VQAv2", image_column="image_id", rows=_mean_rows, **accuracy),
        Benchmark("gqa", "GQA", image_column="imageId", rows=_mean_rows, **accuracy),
        Benchmark("vizwiz", "VizWiz", image_column="question_id", rows=_mean_rows, **accuracy),
        Benchmark("sqa", "SQA", image_column="image", rows=_mean_rows, **accuracy),
        Benchmark("textvqa", "TextVQA", image_column="image_id", rows=_mean_rows, **accuracy),
        Benchmark(
            "pope",
            "POPE",
            "pope_f1_mean,none",
            image_column="image_source",
            rows=_pope_rows,
            points=_f1_mean,
            full=_one,
        ),
        Benchmark(
            "mme",
            "MME",
            "mme_perception_score,none",
            image_column="question_id",
            rows=_mme_rows,
            points=_mme,
            full=_mme_full,
        ),
        Benchmark("mmbench", "MMBench", image_column="index", rows=_mmbench_rows, **circular),
        Benchmark("mmbench_cn", "MMBench-CN", image_column="index", rows=_mmbench_rows, **circular),
        Benchmark("mmvet", "MM-Vet", image_column="question_id", rows=_mmvet_rows, judged=True, **circular),
    ]


BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _benchmarks()}
"""By name, in the order of the leaderboard."""
