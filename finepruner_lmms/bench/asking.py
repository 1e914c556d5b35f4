"""One call of `generate` with its times, and what it makes the host wait for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.bench.clock import finish
from finepruner_lmms.engine.generate import generate
from finepruner_lmms.pruners import Pruner


@dataclass(frozen=True)
class Answer:
    """What a call took: `first` until the first token was ready, `seconds` in total; `execution` is what really ran."""

    sequences: Tensor
    seconds: float
    first: float
    execution: str

    @property
    def per_token(self) -> float:
        """Seconds of one decode step. At least two tokens."""
        return (self.seconds - self.first) / (self.sequences.shape[1] - 1)


@dataclass(frozen=True)
class Asking:
    """A model, and how it is asked: `questions` are for methods that read them apart from the prompt."""

    model: LlavaForConditionalGeneration
    questions: list[str] | None = None

    def __call__(self, pruner: Pruner, inputs: Mapping[str, Any], tokens: int, execution: str) -> Answer:
        """Answer greedily with at most `tokens` tokens, from an idle device to an idle device."""
        device = self.model.device
        finish(device)
        started = time.perf_counter()
        result = generate(
            self.model,
            pruner,
            inputs,
            questions=self.questions,
            execution=execution,
            max_new_tokens=tokens,
            do_sample=False,
        )
        finish(device)
        taken = time.perf_counter() - started
        assert result.seconds_to_first_token is not None  # every answer has a first token
        return Answer(result.sequences, taken, result.seconds_to_first_token, result.execution)


@contextmanager
def without_end(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Answers inside go on to the length that was asked for: no token ends them."""
    config = model.generation_config
    ends, padding = config.eos_token_id, config.pad_token_id
    config.eos_token_id = None
    if padding is None:
        config.pad_token_id = ends[0] if isinstance(ends, list) else 0 if ends is None else ends
    try:
        yield
    finally:
        config.eos_token_id, config.pad_token_id = ends, padding


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """The places at which the host waits for the GPU inside, as torch reports them (`set_sync_debug_mode`)."""
    places: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning

        def note(message: Any, category: Any, filename: str, line: int, *more: Any) -> None:
            if "called a synchronizing" in str(message):
                places.append(f"{filename.rpartition('/')[2]}:{line}")
            elif "Synchronization debug mode" not in str(message):  # torch says once that the mode is a prototype
                show(message, category, filename, line, *more)

        warnings.showwarning = note  # type: ignore[assignment]  # catch_warnings puts it back
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
