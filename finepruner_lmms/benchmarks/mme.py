"""MME: two questions about each image, which count alone and together, in points.

lmms-eval stops where one of a pair was not asked, as under its own `--limit`; here it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark, Rows, Sample
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lazy import np


def aggregate(entries: Sequence[dict[str, Any]]) -> float:
    """lmms-eval's points of the whole pairs; what has no partner is left out, with a warning."""
    from lmms_eval.tasks.mme.utils import mme_aggregate_results
    from loguru import logger

    paired = whole_pairs(entries)
    if len(paired) < len(entries):
        logger.warning(f"MME: {len(entries) - len(paired)} questions have no partner and are left out of the score")
    if not paired:
        raise FieldError("limit", f"none of {len(entries)} questions has its partner", fix="give at least 2")
    return float(mme_aggregate_results(paired))


def whole_pairs(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries about images with two."""
    counts = Counter(pair_of(entry) for entry in entries)
    return [entry for entry in entries if counts[pair_of(entry)] == 2]


def pair_of(entry: Mapping[str, Any]) -> Hashable:
    """What the two questions of a pair share."""
    return entry["category"], entry["question_id"]


# -- from logged samples ----------------------------------------------------------------------------------------------


def rows(samples: Sequence[Sample]) -> Rows:
    """One row per pair of questions: accuracy plus accuracy+ of its category (0 to 200), and the count, by category.

    A question whose partner was not asked is left out, as the task does.
    """
    pairs: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        if (entry := sample.get("mme_perception_score")) is not None:
            pairs.setdefault(pair_of(entry), []).append(sample)
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    named = sorted({pair[0]["mme_perception_score"]["category"] for pair in whole})
    categories = {category: place for place, category in enumerate(named)}
    counted = np.zeros((len(whole), 2 * len(categories)))
    for row, pair in zip(counted, whole, strict=True):
        entries = [sample["mme_perception_score"] for sample in pair]
        right, place = sum(entry["score"] for entry in entries), categories[entries[0]["category"]]
        row[place] = 100 * right / 2 + 100 * (right == 2)
        row[len(categories) + place] = 1
    return counted, [pair[0]["doc_id"] for pair in whole]


def points(totals: np.ndarray) -> np.ndarray:
    """The sum over categories of the mean over its pairs."""
    scores, counts = np.split(totals, 2, axis=-1)
    return (scores / np.maximum(counts, 1)).sum(-1)


def full(totals: np.ndarray) -> np.ndarray:
    """200 points per category that was asked."""
    return 200.0 * (np.split(totals, 2, axis=-1)[1] > 0).sum(-1)


BENCHMARK = Benchmark(
    name="mme",
    title="MME",
    metric="mme_perception_score,none",
    image_column="question_id",
    rows=rows,
    points=points,
    full=full,
    is_mean=False,
    pseudo=0.5,  # as simulated: a question moves the points of its pair by half as much as that of a mean
    sampling=Sampling(("category", "question_id"), group=pair_of, stratum=lambda row: row["category"]),
)
