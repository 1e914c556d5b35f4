"""MM-Vet: a judge gives each answer from 0 to 1; the score is their mean in percent. The judge is in `judge/`."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark, Rows, Sample
from finepruner_lmms.lazy import np


def rows(samples: Sequence[Sample]) -> Rows:
    """The judge's score in percent, and the count. `ValueError` where answers are not judged."""
    entries = [s["gpt_eval_score"] for s in samples]
    if unjudged := [str(entry["question_id"]) for entry in entries if "score" not in entry]:
        raise ValueError(f"mmvet: {len(unjudged)} answers are not judged, such as that to {unjudged[0]}")
    return np.array([[100.0 * float(entry["score"]), 1.0] for entry in entries]), [s["doc_id"] for s in samples]


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    metric="gpt_eval_score,none",
    image_column="question_id",
    rows=rows,
    points=accuracy.mean,
    full=accuracy.hundred,
    judged=True,
    sampling=Sampling(("question_id",), group=lambda row: row["question_id"]),
)
