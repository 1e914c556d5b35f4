"""The ten benchmarks: what their answers count, as lmms-eval tasks and as a leaderboard. Imports nothing heavy."""

from __future__ import annotations

from finepruner_lmms.benchmarks.images import image_names
from finepruner_lmms.benchmarks.record import Benchmark
from finepruner_lmms.benchmarks.table import BENCHMARKS

__all__ = ["BENCHMARKS", "Benchmark", "image_names"]
