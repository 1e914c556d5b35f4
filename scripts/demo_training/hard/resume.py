"""A phase that can be stopped at any moment, and goes on from a file that is minutes old."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn


class Progress:
    """Where a phase is: its steps, and the file that it is kept in every `every` seconds."""

    def __init__(self, file: Path, log: Callable[[str], None], every: float = 120.0) -> None:
        self.file, self.log, self.every = file, log, every
        self.seconds = 0.0
        self._started = time.monotonic()

    def done(self, total: int) -> bool:
        """Whether no step is left of `total`."""
        return self.file.exists() and int(torch.load(self.file, weights_only=True)["step"]) >= total

    def say(self, line: str) -> None:
        """A line of the log, with the phase and the seconds that it has run, also in earlier runs."""
        self.log(f"{self.file.stem} {self._spent():.0f} s {line}")

    def _spent(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def steps(
        self, total: int, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer, rng: random.Random
    ) -> Iterator[int]:
        """The steps that are left to do; modules, optimizer and chance are as they were where it goes on."""
        first = self._resume(modules, optimizer, rng) if self.file.exists() else 0
        kept = self._started = time.monotonic()
        for step in range(first, total):
            if time.monotonic() - kept > self.every:
                self._keep(step, modules, optimizer, rng)
                kept = time.monotonic()
            yield step
        self._keep(total, modules, optimizer, rng)

    def _keep(self, step: int, modules, optimizer, rng: random.Random) -> None:
        state = {
            "step": step, "seconds": self._spent(), "modules": [module.state_dict() for module in modules],
            "optimizer": optimizer.state_dict(), "torch": torch.get_rng_state(), "python": rng.getstate(),
        }  # fmt: skip
        beside = self.file.with_suffix(".new")
        torch.save(state, beside)
        beside.replace(self.file)

    def _resume(self, modules, optimizer, rng: random.Random) -> int:
        state = torch.load(self.file, weights_only=True)
        for module, kept in zip(modules, state["modules"], strict=True):
            module.load_state_dict(kept)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"])
        version, internal, gauss = state["python"]
        rng.setstate((version, tuple(internal), gauss))
        self.seconds = state["seconds"]
        self.log(f"{self.file.stem}: goes on at step {state['step']}")
        return int(state["step"])
