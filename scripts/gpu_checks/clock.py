"""Times of calls, and of methods that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finepruner_lmms.bench.asking import Answer
from finepruner_lmms.bench.clock import finish
from finepruner_lmms.pruners import Pruner
from gpu_checks.run import Run, first_line


def median_ms(call: Callable[[], Any], device: torch.device, times: int) -> float:
    """Milliseconds of a call, several of them in a row where the device works by itself."""
    call()
    taken = []
    for _ in range(times):
        finish(device)
        started = time.perf_counter()
        call()
        finish(device)
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


Subject = tuple[str, int | None, str]


def interleaved(
    run: Run, subjects: Sequence[Subject], ask: Callable[[Pruner, str], Answer], rounds: int
) -> dict[Subject, list[Answer]]:
    """Every subject once a round, after a round that does not count; those that fail say so and are left out."""
    found: dict[Subject, list[Answer]] = {}
    for subject in run.within(subjects):
        name, budget, execution = subject
        try:
            ran = [ask(run.pruner(name, budget), execution) for _ in range(2)][-1].execution
        except (RuntimeError, ValueError) as error:
            run.say(method=name, budget=budget, execution=execution, error=first_line(error))
            finish(run.device)
            continue
        if execution != ran:
            run.say(method=name, budget=budget, asked=execution, ran=ran, reason="left out")
            continue
        found[subject] = []
    for _ in run.within(range(rounds)):
        for (name, budget, execution), answers in found.items():
            answers.append(ask(run.pruner(name, budget), execution))
    return {subject: answers for subject, answers in found.items() if answers}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, rounded."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def faster(found: dict[Subject, list[Answer]], slow: Subject, fast: Subject, what: str) -> float | None:
    """How many times faster, by the medians of the rounds' ratios: what else the machine did hits both of a round."""
    if slow not in found or fast not in found:
        return None
    pairs = zip(found[slow], found[fast], strict=True)
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)
