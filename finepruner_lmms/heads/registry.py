"""Head strategies by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.heads.view import HeadView, parts
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HeadStrategy = Callable[[HeadView], "Tensor"]
_STRATEGIES: dict[str, HeadStrategy] = {}
_PLACES: dict[str, str] = {}


def register_head_strategy(name: str) -> Callable[[HeadStrategy], HeadStrategy]:
    """Add a head strategy: a function from a `HeadView` to head scores `[B, H]`, larger is better."""

    place = str(sys._getframe(1).f_globals.get("__name__", "__main__"))

    def add(function: HeadStrategy) -> HeadStrategy:
        _STRATEGIES[name], _PLACES[name] = function, place
        return function

    return add


def known_strategies() -> tuple[str, ...]:
    """The sorted names of all strategies."""
    return tuple(sorted(_STRATEGIES))


def strategy_function(name: str | None) -> HeadStrategy | None:
    """The strategy of that name; None where there is none."""
    return None if name is None else _STRATEGIES.get(name)


def strategy_registered_in(name: str | None) -> str | None:
    """The module that registered a strategy, which need not be the one that defines it; None where there is none."""
    return None if name is None else _PLACES.get(name)


def head_scores(attention: Tensor, strategy: str, heads: int, normalise: str = "resoftmax") -> Tensor:
    """The score `[B, H]` of each head of `attention` `[B, H, N]`, in float64, for choosing `heads` of them."""
    if strategy not in _STRATEGIES:
        known = known_strategies()
        hint = nearest(strategy, known)
        problem = f"unknown strategy {strategy!r}{hint}; known: {', '.join(known)}"
        raise FieldError("head_strategy", problem, value=strategy)
    score = _STRATEGIES[strategy]
    return torch.cat([score(HeadView(rows, heads, normalise)) for rows in parts(attention)])


def best_heads(scores: Tensor, heads: int) -> Tensor:
    """The `heads` best of `scores` `[B, H]`, best first, the lower head on a tie: `[B, heads]`."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :heads]
