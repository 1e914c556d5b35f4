"""What choosing alone takes: the methods' own code, in a real prefill, between two waits for the device."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.bench.asking import Asking
from finepruner_lmms.bench.clock import finish
from finepruner_lmms.bench.prompts import Prompts
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.pruners import Pruner


def selection_seconds(asking: Asking, pruner: Pruner, prompts: Prompts, vision: Any) -> float:
    """Of one eager prefill, the time inside `reduce` and inside every `select`, the rows they read included."""
    spent: list[float] = []
    with ExitStack() as undo:
        for part, name in _choices(asking.model, pruner):
            undo.enter_context(_timed(type(part), name, asking.model.device, spent))
        asking(pruner, prompts.encoded(vision), 1, "eager")
    return sum(spent)


def _choices(model: LlavaForConditionalGeneration, pruner: Pruner) -> list[tuple[Pruner, str]]:
    before, inside = pruner.parts(Geometry.of(model.config).num_visual_tokens)
    found: list[tuple[Pruner, str]] = [] if before is None else [(before, "reduce")]
    return found if inside is None else [*found, (inside, "select")]


@contextmanager
def _timed(cls: type, name: str, device: torch.device, spent: list[float]) -> Iterator[None]:
    """Inside, the method `name` of a class adds what it takes to `spent`."""
    method, own = getattr(cls, name), name in vars(cls)

    @functools.wraps(method)
    def timed(*args: Any, **kwargs: Any) -> Any:
        finish(device)
        started = time.perf_counter()
        result = method(*args, **kwargs)
        finish(device)
        spent.append(time.perf_counter() - started)
        return result

    setattr(cls, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(cls, name, method)
        else:
            delattr(cls, name)
