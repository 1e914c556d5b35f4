"""What one call of `generate` gives, and when its first token was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from finepruner_lmms.engine.clock import Clock
from finepruner_lmms.engine.trace import Trace


@dataclass(frozen=True, repr=False)
class Generation:
    """`sequences` `[B, T]`: new token ids only; `logits`: T tensors `[B, V]` if asked for; `trace`: what was kept.

    `execution` is how it ran, `"eager"` or `"graphs"`.
    """

    sequences: Tensor
    logits: tuple[Tensor, ...] | None
    trace: Trace
    execution: str = "eager"
    clock: Clock | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """In short, on one line, without the tokens themselves."""
        rows, length = self.sequences.shape
        answers = f"{rows} answers" if rows != 1 else "1 answer"
        logits = ", with logits" if self.logits is not None else ""
        return f"Generation({answers} of up to {length} tokens{logits}, {self.execution}; {self.trace!r})"

    @property
    def seconds_to_first_token(self) -> float | None:
        """From the call until the first token of all rows was there. Waits for the device where it is not done."""
        return None if self.clock is None else self.clock.seconds


@contextmanager
def marked(model: Any, clock: Clock) -> Iterator[None]:
    """Inside, the first forward of the model stops `clock`."""
    hook = model.register_forward_hook(lambda *_: clock.mark())
    try:
        yield
    finally:
        hook.remove()
