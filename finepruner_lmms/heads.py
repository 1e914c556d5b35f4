"""Which attention heads guide the pruning: head strategies, and the selection of the best-scored heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HeadStrategy = Callable[[Tensor], Tensor]
_STRATEGIES: dict[str, HeadStrategy] = {}
HEAD_STRATEGIES: tuple[str, ...] = ()


def register_head_strategy(name: str) -> Callable[[HeadStrategy], HeadStrategy]:
    """Add a head strategy: a function from attention `[B, H, N]` to head scores `[B, H]`, larger is better."""

    def add(function: HeadStrategy) -> HeadStrategy:
        global HEAD_STRATEGIES
        _STRATEGIES[name] = function
        HEAD_STRATEGIES = tuple(sorted(_STRATEGIES))
        return function

    return add


@register_head_strategy("sum")
def visual_mass(attention: Tensor) -> Tensor:
    """How much of its attention a head spends on the image."""
    return attention.sum(-1)


def head_scores(attention: Tensor, strategy: str) -> Tensor:
    """The score `[B, H]` of each head of `attention` `[B, H, N]`, in float32 or better."""
    if strategy not in _STRATEGIES:
        raise ValueError(f"head_strategy: unknown strategy {strategy!r}; known: {', '.join(HEAD_STRATEGIES)}")
    return _STRATEGIES[strategy](attention if attention.dtype == torch.float64 else attention.float())


def best_heads(scores: Tensor, heads: int) -> Tensor:
    """The `heads` best of `scores` `[B, H]`, best first, the lower head on a tie: `[B, heads]`."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :heads]


def select_heads(attention: Tensor, strategy: str, heads: int) -> Tensor:
    """The heads that guide, best first: `[B, heads]`.

    `attention` `[B, H, N]` is the last prompt token's post-softmax attention to the visual tokens. Raises
    `ValueError` for an unknown strategy, a number of heads outside 1..H, or attention that is not finite.
    """
    if attention.ndim != 3:
        raise ValueError(f"attention: shape {list(attention.shape)}; expected [batch, heads, visual tokens]")
    if not 1 <= heads <= attention.shape[1]:
        raise ValueError(f"heads: got {heads}; expected 1 to {attention.shape[1]}, the query heads of the attention")
    if not bool(torch.isfinite(attention).all()):
        raise ValueError("attention: holds NaN or infinite values")
    return best_heads(head_scores(attention, strategy), heads)
