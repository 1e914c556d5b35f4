"""POPE as LLaVA-1.5 was evaluated on it: answers are read leniently, and F1 is of each kind of negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark, Rows, Sample
from finepruner_lmms.lazy import np

_DENIALS = {"No", "no", "not"}
_METRICS = ("pope_f1_mean", "pope_f1_score", "pope_accuracy", "pope_precision", "pope_recall", "pope_yes_ratio")
ALL_KINDS = "all"
"""The kind of negatives where it is not known, or not asked for: one for all, so that F1 is over all questions."""


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The answer as LLaVA reads it, for each metric.

    lmms-eval itself accepts nothing but "yes" and "no": "No." is then neither right nor a wrong "yes", and an answer
    that is neither is left out of precision and recall, so that a model that stammers gains by it.
    """
    return _scored(doc, read(results[0]), doc["category"])


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The answer as lmms-eval reads it, with all questions of one kind, so that F1 is over all of them."""
    return _scored(doc, results[0].lower().strip(), ALL_KINDS)


def _scored(doc: dict[str, Any], said: str, category: str) -> dict[str, Any]:
    true = doc["answer"].lower().strip()
    if true not in ("yes", "no"):
        raise ValueError(f"answer: got {doc['answer']!r} in question {doc['question_id']!r}; expected yes or no")
    entry = {
        "question_id": doc["question_id"],
        "score": float(said == true),
        "prediction": said,
        "ground_truth": true,
        "category": category,
    }
    if "image_source" in doc:
        entry["image"] = doc["image_source"]
    return dict.fromkeys(_METRICS, entry) | {"score": entry["score"]}


def read(answer: str) -> str:
    """`"yes"` or `"no"`, as LLaVA's `eval_pope.py` reads it: no if "No", "no" or "not" stands in the first sentence.

    A word is what stands between spaces: "No" before a line break or in capitals is none of these, and so a yes.
    """
    sentence = answer.partition(".")[0].replace(",", "")
    return "no" if _DENIALS & set(sentence.split(" ")) else "yes"


def f1_mean(entries: Sequence[dict[str, Any]]) -> float:
    """The mean of the F1 of "yes" over the kinds of negatives: LLaVA's 85.9 is the mean of three."""
    from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score

    kinds: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        kinds.setdefault(entry["category"], []).append(entry)
    return sum(float(pope_aggregate_f1_score(kind)) for kind in kinds.values()) / len(kinds)


def yes_ratio(entries: Sequence[dict[str, Any]]) -> float:
    """The share of questions that the model affirms. (lmms-eval's is the share of those whose answer is yes.)"""
    return sum(entry["prediction"] == "yes" for entry in entries) / len(entries)


# -- from logged samples ----------------------------------------------------------------------------------------------


def rows(samples: Sequence[Sample]) -> Rows:
    """True positives, false positives, false negatives of "yes" and the count, each by kind of negatives `[m, 4 k]`."""
    entries = [sample["pope_f1_mean"] for sample in samples]
    kinds = {kind: place for place, kind in enumerate(sorted({entry["category"] for entry in entries}))}
    counted = np.zeros((len(entries), 4, len(kinds)))
    for row, entry in zip(counted, entries, strict=True):
        said, true = entry["prediction"], entry["ground_truth"]
        outcome = [said == true == "yes", said == "yes" and true == "no", said == "no" and true == "yes", True]
        row[:, kinds[entry["category"]]] = outcome
    return counted.reshape(len(entries), -1), [s["doc_id"] for s in samples]


def each(samples: Sequence[Sample]) -> list[tuple[int, float]]:
    """Every question, right or wrong."""
    entries = [(sample["doc_id"], sample["pope_f1_mean"]) for sample in samples]
    return [(number, float(entry["prediction"] == entry["ground_truth"])) for number, entry in entries]


def points(totals: np.ndarray) -> np.ndarray:
    """The mean over the kinds of negatives that were asked of the F1 of "yes"."""
    hits, wrong, missed, counts = np.split(totals, 4, axis=-1)
    precision = hits / np.maximum(hits + wrong, 1)
    recall = hits / np.maximum(hits + missed, 1)
    both = precision + recall
    f1 = 2 * precision * recall / np.where(both > 0, both, 1)
    return f1.sum(-1) / np.maximum((counts > 0).sum(-1), 1)


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    metric="pope_f1_mean,none",
    image_column="image_source",
    rows=rows,
    points=points,
    full=accuracy.one,
    factor=100,
    each=each,
    sampling=Sampling(
        ("question_id", "category", "answer"),
        group=lambda row: row["question_id"],
        stratum=lambda row: (row["category"], row["answer"]),
    ),
)
