"""VizWiz: accuracy by ten annotators, as LLaVA uploads answers and the API scores them."""

from __future__ import annotations

from typing import Any

from finepruner_lmms.benchmarks import accuracy, annotators
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The score by LLaVA's upload and the API's comparison (`annotators.vizwiz`)."""
    return accuracy.scored(annotators.vizwiz(results[0], doc["answers"]))


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The score by lmms-eval's comparison."""
    from lmms_eval.tasks.vizwiz_vqa.utils import vizwiz_vqa_process_results

    found = vizwiz_vqa_process_results(doc | {"answers": list(doc["answers"])}, results)
    return accuracy.scored(float(found["exact_match"]))


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    metric=accuracy.METRIC,
    image_column="question_id",
    rows=accuracy.rows,
    points=accuracy.mean,
    full=accuracy.one,
    factor=100,
    sampling=Sampling(("question_id",), group=lambda row: row["question_id"]),
)
