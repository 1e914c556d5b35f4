"""Whether it matters which heads a profile names: controls, and how well each finds evidence it was not made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from finepruner_lmms.errors import check_choice
from finepruner_lmms.heads.criteria import Profiled, mean_weights, scores_of
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CONTROLS = ("heads", "weights", "noise")
DRAWS = 5
"""So many of each control are drawn for `held_out`."""


def control(weights: Tensor, kind: str, seed: int) -> Tensor:
    """What a profile `weights` `[L, H]` is compared with, drawn by `seed`; of the same shape and type.

    `heads`: the same weights on other heads of the same layers. `weights`: the same heads, weighted at random between 0
    and 1. `noise`: what a criterion would say that knows nothing, of all heads: standard normal, those above 0.
    """
    check_choice("--control", kind, CONTROLS)
    draw = torch.Generator().manual_seed(seed)
    if kind == "heads":
        orders = torch.stack([torch.randperm(weights.shape[1], generator=draw) for _ in range(len(weights))])
        return weights.gather(1, orders)
    if kind == "weights":
        # 1 less what is drawn below 1, so that none of them is 0
        return (1 - torch.rand(weights.shape, generator=draw, dtype=weights.dtype)) * (weights > 0)
    return torch.randn(weights.shape, generator=draw, dtype=weights.dtype).clamp_min(0)


def found_share(seen: Profiled, weights: Tensor) -> float:
    """Of the |E| best tokens, the share that is evidence E, the mean over the questions.

    Best by the heads' rows, each normalised over the image, added up by `weights` `[L, H]`; the lower token on a tie.
    """
    shares = []
    for rows, evidence in zip(seen.asked, seen.evidence, strict=True):
        rows = rows.double() / rows.double().sum(-1, keepdim=True).clamp_min(1e-30)
        best = torch.einsum("lh,lhn->n", weights, rows).argsort(descending=True, stable=True)
        shares.append(float(evidence[best[: int(evidence.sum())]].double().mean()))
    return sum(shares) / len(shares)


class HeldOut(NamedTuple):
    """`found_share` on questions that the weights were not made from, of the profile and of what it is compared with.

    `alike` is of all heads with equal weights, `chance` of tokens at random; `controls` are (kind, mean, lowest,
    highest) over `DRAWS` draws.
    """

    profile: float
    alike: float
    chance: float
    controls: tuple[tuple[str, float, float, float], ...]


def held_out(seen: Profiled, criterion: str) -> HeldOut:
    """Weights from every second question, tried on the others; then the other way round, and the mean of both."""
    halves = [_part(seen, slice(start, None, 2)) for start in range(2)]
    pairs = [(mean_weights(scores_of(one, criterion)), other) for one, other in (halves, halves[::-1])]

    def both(change: Callable[[Tensor], Tensor]) -> float:
        return sum(found_share(other, change(weights)) for weights, other in pairs) / 2

    controls = []
    for kind in CONTROLS:
        drawn = [both(partial(control, kind=kind, seed=seed)) for seed in range(DRAWS)]
        controls.append((kind, sum(drawn) / DRAWS, min(drawn), max(drawn)))
    chance = float(seen.evidence.double().mean())
    return HeldOut(both(lambda weights: weights), both(torch.ones_like), chance, tuple(controls))


def _part(seen: Profiled, questions: slice) -> Profiled:
    gradient = None if seen.gradient is None else seen.gradient[questions]
    return Profiled(seen.asked[questions], seen.unasked[questions], seen.evidence[questions], gradient)
