"""What a question counts by itself, also for benchmarks whose score is over several."""

from __future__ import annotations

from typing import Any

from finepruner_lmms.benchmarks import mmbench
from finepruner_lmms.matrix.export.tables import number_of


def correctness(task: str, score: Any) -> float | None:
    """From 0 to 1; of MMBench, whether the letter is right in this one order of the options. None where it has none."""
    if task in ("mmbench", "mmbench_cn") and isinstance(score, dict):
        read = score.get("letter") or mmbench.static_letter(score)
        return float(read == score["answer"])
    return number_of(score)
