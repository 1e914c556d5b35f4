"""VQAv2: accuracy by ten annotators, as lmms-eval computes it."""

from __future__ import annotations

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark

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
