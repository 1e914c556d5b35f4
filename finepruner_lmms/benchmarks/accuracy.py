"""Scores that are a mean over questions: what VQAv2, GQA, VizWiz, ScienceQA, TextVQA, MMBench and MM-Vet share."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.benchmarks.record import Rows, Sample
from finepruner_lmms.lazy import np

METRIC = "exact_match,none"


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
