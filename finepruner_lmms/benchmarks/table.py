"""The ten benchmarks by name, in the order of the leaderboard. Imports neither lmms-eval nor torch."""

from __future__ import annotations

from finepruner_lmms.benchmarks import gqa, mmbench, mme, mmvet, pope, sqa, textvqa, vizwiz, vqav2
from finepruner_lmms.benchmarks.record import Benchmark

_ALL = (
    vqav2.BENCHMARK,
    gqa.BENCHMARK,
    vizwiz.BENCHMARK,
    sqa.BENCHMARK,
    textvqa.BENCHMARK,
    pope.BENCHMARK,
    mme.BENCHMARK,
    mmbench.BENCHMARK,
    mmbench.BENCHMARK_CN,
    mmvet.BENCHMARK,
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
"""By name, in the order of the leaderboard."""
