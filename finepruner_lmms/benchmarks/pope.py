"""POPE as LLaVA-1.5 was evaluated on it: answers are read leniently, and F1 is of each kind of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

_DENIALS = {"no", "not"}
_METRICS = ("pope_f1_mean", "pope_f1_score", "pope_accuracy", "pope_precision", "pope_recall", "pope_yes_ratio")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The answer as it is read, for each metric.

    lmms-eval itself accepts nothing but "yes" and "no": "No." is then neither right nor a wrong "yes", and an answer
    that is neither is left out of precision and recall, so that a model that stammers gains by it.
    """
    said, true = read(results[0]), doc["answer"].lower().strip()
    if true not in ("yes", "no"):
        raise ValueError(f"answer: got {doc['answer']!r} in question {doc['question_id']!r}; expected yes or no")
    entry = {
        "question_id": doc["question_id"],
        "score": float(said == true),
        "prediction": said,
        "ground_truth": true,
        "category": doc["category"],
    }
    return dict.fromkeys(_METRICS, entry)


def read(answer: str) -> str:
    """`"yes"` or `"no"`: no if the first sentence has the word "no" or "not", as in LLaVA's `eval_pope.py`.

    Case does not matter here; there, "NO" and "Not" are read as yes.
    """
    sentence = answer.partition(".")[0].replace(",", "")
    return "no" if _DENIALS & set(sentence.lower().split()) else "yes"


def f1_mean(entries: Sequence[dict[str, Any]]) -> float:
    """The mean of the F1 of "yes" over the kinds of negatives: LLaVA's 85.9 is the mean of three."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        kinds.setdefault(entry["category"], []).append(entry)
    return sum(float(pope_aggregate_f1_score(kind)) for kind in kinds.values()) / len(kinds)


def yes_ratio(entries: Sequence[dict[str, Any]]) -> float:
    """The share of questions that the model affirms. (lmms-eval's is the share of those whose answer is yes.)"""
    return sum(entry["prediction"] == "yes" for entry in entries) / len(entries)
