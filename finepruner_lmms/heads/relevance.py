"""From what chosen heads attend to, how much each visual token matters: the steps of `visualheads`, as functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.facility import cosines
from finepruner_lmms.ops.token_scores import head_rows, token_scores

if TYPE_CHECKING:
    from torch import Tensor

MERITS = ("mass", "compactness", "contrast")
CONTRASTS = ("none", "gain", "ratio")
SINKS = ("leave", "drop", "keep")
MOST_SINKS = 4
"""So many sinks, those attended to most, are kept by `sinks="keep"`."""
_SINK = 20.0  # arXiv 2503.03321, section 3: one value this many times the token's root mean square
_EPS = 1e-10  # as PriorTR's code


def sink_tokens(hidden: Tensor, present: Tensor) -> Tensor:
    """`[B, V]` bool: tokens of `hidden` `[B, V, D]` in which one value is 20 times the token's root mean square.

    Such massive values mark tokens that are attended to whatever is asked (Kang et al., ICLR 2025, who look at the two
    places known for LLaVA-1.5 alone). In fewer than 400 dimensions no token can be one.
    """
    size = hidden.float().abs()
    return (size.amax(-1) > _SINK * size.square().mean(-1).sqrt()) & present


def lost_without(attention: Tensor, values: Tensor, output: Tensor) -> Tensor:
    """How far a head's output would move without each token: a / (1 - a) · ‖V - Y‖, `[B, H, V]` float64.

    Of `attention` a `[B, H, V]`, `values` V `[B, H, V, head_dim]` and the `output` Y `[B, H, head_dim]`, before the
    output projection (arXiv: CoRePrune's singleton score).
    """
    away = torch.linalg.vector_norm(values.double() - output.double()[:, :, None], dim=-1)
    heard = attention.double()
    return heard / (1 - heard).clamp_min(1e-12) * away


def over_image(rows: Tensor) -> Tensor:
    """`rows` `[B, H, V]`, each divided by its sum over the image; a row of zeros stays one. Float64."""
    return head_rows(rows.double(), "renormalised")


def merit(rows: Tensor, prior: Tensor | None, by: str) -> Tensor:
    """How much each head of `rows` `[B, H, V]` says about the image, `[B, H]` float64; larger is better.

    `mass`: its attention to the image. `compactness`: ln V less the entropy of its row over the image. `contrast`: the
    divergence of its row from the same head's `prior` `[B, H, V]`, which has not read the question; 0 without one.
    """
    if by == "mass":
        return rows.double().sum(-1)
    shares = over_image(rows)
    if by == "compactness":
        return math.log(rows.shape[-1]) + (shares * shares.clamp_min(1e-30).log()).sum(-1)
    if prior is None:
        return torch.zeros_like(shares[..., 0])
    return (shares * ((shares + _EPS) / (over_image(prior) + _EPS)).log()).sum(-1)


def contrasted(rows: Tensor, prior: Tensor | None, how: str) -> Tensor:
    """`rows` `[B, H, V]` by what they have more than the same head's `prior` `[B, H, V]`: the same shape, float64.

    With p and q for the two, each over its sum over the image: `gain` is max(0, p·log(p/q)), `ratio` p / (q + 1/V).
    `none`, or no prior, leaves `rows`. A row whose prior is zero everywhere is as without one.
    """
    if how == "none" or prior is None:
        return rows.double()
    asked, unasked = over_image(rows), over_image(prior)
    if how == "ratio":
        found = asked / (unasked + 1 / rows.shape[-1])
    else:
        found = (asked * ((asked + _EPS) / (unasked + _EPS)).log()).clamp_min(0)
    return torch.where(prior.sum(-1, keepdim=True) > 0, found, rows.double())


def fused(rows: Tensor, weights: Tensor, aggregate: str) -> Tensor:
    """One row of the n heads' `rows` `[B, n, V]`, of 0 or more: `[B, V]`.

    `mean` adds them up by `weights` `[B, n]`; `max` is the largest of row times weight. `quota`: the heads nominate in
    turn, the first of `rows` first, each its best token, then each its next; a token's score is 1 / (1 + its turn).
    """
    if aggregate == "mean":
        return (rows * weights[..., None]).sum(1)
    if aggregate == "max":
        return (rows * weights[..., None]).amax(1)
    return 1 / (1 - token_scores(rows.double(), aggregate="quota"))  # which are turns, negative


def likeness(tokens: Tensor, present: Tensor, similarity: str) -> Tensor:
    """Cosines `[B, N, N]` of `tokens` `[B, N, D]`; `centred`: less the mean of those `present` `[B, N]`.

    Rounded to multiples of 2^-20: then sums of their differences are exact, and of two tokens that are each other's
    nearest, which add equally much to an unweighted cover, the lower index wins.
    """
    if similarity == "centred":
        there = present[..., None].double()
        tokens = tokens.double()
        tokens = tokens - (tokens * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
    return (cosines(tokens) * 2**20).round() / 2**20
