"""Steps of a phase: a rate that rises over 100 steps, or a tenth of them, and falls along a cosine to a twentieth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from demo_training.hard.resume import Progress

_TOLD = 100  # steps between two reports


class Plan(Protocol):
    """What is asked of a phase's steps."""

    @property
    def steps(self) -> int:
        """How many."""

    @property
    def batch(self) -> int:
        """Pictures in each."""

    @property
    def rate(self) -> float:
        """The highest learning rate."""


def adamw(modules: Sequence[nn.Module], rate: float) -> torch.optim.Optimizer:
    """AdamW for everything in `modules`."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))


def descend(
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    pictures: int,
    progress: Progress,
    rng: random.Random,
    loss_of: Callable[[Tensor, random.Random], Tensor],
    report: Callable[[], str],
) -> None:
    """Train `modules` in place on `loss_of` some of so many pictures `[batch]`; goes on from where `progress` has it.

    `rng` is the phase's source of chance, and what is kept of it with the progress.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    rise = min(100, plan.steps / 10)
    losses: list[float] = []
    for step in progress.steps(plan.steps, modules, optimizer, rng):
        fall = 0.05 + 0.95 * (1 + math.cos(math.pi * step / plan.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1, (step + 1) / rise) * fall
        loss = loss_of(torch.randint(0, pictures, (plan.batch,)), rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % _TOLD == _TOLD - 1 or step == plan.steps - 1:
            progress.say(f"step {step + 1}/{plan.steps} loss {sum(losses) / len(losses):.3f} | {report()}")
            losses.clear()
