"""Which methods are asked, of which prompts, and on which device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms import testing
from finepruner_lmms.pruners import Pruner
from gpu_checks.run import Run

STEPS = 32


MIXES: dict[str, tuple[tuple[int, int] | int, ...]] = {
    "one prompt": ((5, 7),),
    "prompts of one length": ((5, 7), (5, 7), (5, 7)),
    "any mix": ((5, 7), 11, (2, 4), (8, 1)),
}


def variants(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Every method, and every way in which heads are chosen; in a quick run one of each kind."""
    if run.quick:
        names = ("vanilla", "fastv", "sparsevlm", "vispruner", "random")
        return [*((name, {}) for name in names), ("finepruner", {"head_strategy": "consensus"})]
    found: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in fp.METHODS]
    strategies = sorted({*fp.HEAD_STRATEGIES, "consensus"})
    found += [("finepruner", {"head_strategy": strategy}) for strategy in strategies]
    found += [("finepruner", {"guide": guide}) for guide in ("pdrop", "sparsevlm")]
    kept = []
    for name, parameters in found:
        if parameters.get("head_strategy") == "fixed":
            parameters = {**parameters, "fixed_heads": "0-1"}
        kept.append((name, parameters))
    return kept


def at_some_budget(name: str, parameters: dict[str, Any], share: str, layers: int, visual: int) -> Pruner | None:
    """The method, or None where the budget is out of its reach."""
    pruner = testing.build(name, budget=share, **parameters)
    try:
        pruner.schedule(layers, visual)
    except ValueError:
        return None
    return pruner


def named(name: str, parameters: dict[str, Any]) -> str:
    """For a line of output."""
    return " ".join([name, *(f"{key}={value}" for key, value in parameters.items())])


def copied(model: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of a small model on another device."""
    return copy.deepcopy(model).to(device, dtype)


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Inputs on another device."""
    return {name: value.to(device) for name, value in inputs.items()}


@contextmanager
def exact_float32() -> Iterator[None]:
    """Inside, products of float32 are of float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
