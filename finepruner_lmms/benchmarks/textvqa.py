"""TextVQA: accuracy by ten annotators, as LLaVA and lmms-eval both compute it."""

from __future__ import annotations

from typing import Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """lmms-eval's score, which is LLaVA's."""
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    found = textvqa_process_results(doc | {"answers": list(doc["answers"])}, results)
    return accuracy.scored(float(found["exact_match"]), doc.get("image_id"))


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    metric=accuracy.METRIC,
    image_column="image_id",
    rows=accuracy.rows,
    points=accuracy.mean,
    full=accuracy.one,
    factor=100,
    sampling=Sampling(("question_id",), group=lambda row: row["question_id"]),
)
