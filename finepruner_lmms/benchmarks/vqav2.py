"""VQAv2: accuracy by ten annotators, as LLaVA uploads answers and the server scores them."""

from __future__ import annotations

import copy
from typing import Any

from finepruner_lmms.benchmarks import accuracy, annotators
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The score by LLaVA's upload and the server's comparison (`annotators.vqav2`)."""
    given = [one["answer"] for one in doc["answers"]]
    return accuracy.scored(annotators.vqav2(results[0], given), doc.get("image_id"))


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The score by lmms-eval's comparison."""
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

    found = vqav2_process_results_val(doc | {"answers": copy.deepcopy(doc["answers"])}, results)
    return accuracy.scored(float(found["exact_match"]), doc.get("image_id"))


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQAv2",
    metric=accuracy.METRIC,
    image_column="image_id",
    rows=accuracy.rows,
    points=accuracy.mean,
    full=accuracy.one,
    factor=100,
    sampling=Sampling(("question_id",), group=lambda row: row["question_id"]),
)
