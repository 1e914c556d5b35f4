"""Head strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from finepruner_lmms.heads.named import Named, caller
from finepruner_lmms.heads.view import HeadView, parts
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HeadStrategy = Callable[[HeadView], "Tensor"]
RESERVED = ("consensus", "fixed", "profile", "recommended")
"""What `head_strategy` takes besides: no function of single heads."""
STRATEGIES: Named[HeadStrategy] = Named("head_strategy", "strategy", RESERVED)


def register_head_strategy(name: str) -> Callable[[HeadStrategy], HeadStrategy]:
    """Add a head strategy: a function from a `HeadView` to head scores `[B, H]`, larger is better.

    `FieldError` for a name that is taken by another function, or is none.
    """
    return STRATEGIES.register(name, caller())


def known_strategies() -> tuple[str, ...]:
    """The sorted names of all strategies, those of plug-ins among them."""
    return STRATEGIES.known()


def head_scores(attention: Tensor, strategy: str, heads: int, normalise: str = "resoftmax") -> Tensor:
    """The score `[B, H]` of each head of `attention` `[B, H, N]`, in float64, for choosing `heads` of them."""
    score = STRATEGIES.find(strategy)
    return torch.cat([score(HeadView(rows, heads, normalise)) for rows in parts(attention)])


def best_heads(scores: Tensor, heads: int) -> Tensor:
    """The `heads` best of `scores` `[B, H]`, best first, the lower head on a tie: `[B, heads]`."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :heads]
