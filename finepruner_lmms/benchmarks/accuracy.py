"""Scores that are a mean over questions: what VQAv2, GQA, VizWiz, ScienceQA, TextVQA, MMBench and MM-Vet share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finepruner_lmms.benchmarks.record import Rows, Sample
from finepruner_lmms.lazy import np

METRIC = "exact_match,none"
BY_IMAGE = "exact_match_by_image"
"""The same score as `exact_match`, of which lmms-eval's clustered standard error counts images, not questions."""


def scored(score: float, image: Any = None) -> dict[str, Any]:
    """What `process_results` gives of a question with a score from 0 to 1.

    `exact_match` is what is averaged. lmms-eval reads two more things: `score`, a number for each question, which its
    `--baseline` compares, and, where the image is named, the `image` by which its standard error is clustered.
    """
    alone = {"exact_match": score, "score": score}
    return alone if image is None else alone | {BY_IMAGE: {"score": score, "image": str(image)}}


def mean_of_entries(entries: Sequence[Mapping[str, Any]]) -> float:
    """The mean of the entries' `score`."""
    return float(sum(entry["score"] for entry in entries) / len(entries))


def rows(samples: Sequence[Sample]) -> Rows:
    """Score and count of each question `[m, 2]`."""
    return np.array([[float(s["exact_match"]), 1.0] for s in samples]), [s["doc_id"] for s in samples]


def mean(totals: np.ndarray) -> np.ndarray:
    """Sum of the scores by the count."""
    return totals[..., 0] / np.maximum(totals[..., 1], 1)


def one(totals: np.ndarray) -> np.ndarray:
    """What a perfect model gets where a question counts from 0 to 1."""
    return np.ones(totals.shape[:-1])


def hundred(totals: np.ndarray) -> np.ndarray:
    """What a perfect model gets where a question counts from 0 to 100."""
    return np.full(totals.shape[:-1], 100.0)
