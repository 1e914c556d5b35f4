"""The ten benchmarks: what their answers count, as lmms-eval tasks and as a leaderboard. Imports nothing heavy."""

from __future__ import annotations

from finepruner_lmms.benchmarks.table import BENCHMARKS, Benchmark, image_names

__all__ = ["BENCHMARKS", "Benchmark", "image_names"]
