"""By what heads are profiled: a score for every head from the attention of some questions, and how reliable it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from finepruner_lmms.errors import check_choice

if TYPE_CHECKING:
    from torch import Tensor

CRITERIA = ("evidence", "hits", "compactness", "mass", "gradient")


class Profiled(NamedTuple):
    """The last token's attention to the image, of S questions in every layer but the last and every head.

    `asked` `[S, L, H, N]` is of the question, `unasked` of the same picture with its instruction alone; `evidence`
    `[S, N]` bool are the tokens of what the question is about. `gradient` `[S, N]` is how much the right answer hangs
    on each token (`bench.answer_gradient`), where it was computed.
    """

    asked: Tensor
    unasked: Tensor
    evidence: Tensor
    gradient: Tensor | None = None


def scores_of(seen: Profiled, criterion: str) -> Tensor:
    """What each question says of each head, `[S, L, H]` float64; larger is better.

    `evidence`: the attention on what the question is about, less the attention that falls on it when nothing is asked
    (the null calibration of arXiv 2605.27243). `hits`: 1 / its tokens if the head attends most to one of them, else 0
    (as arXiv 2506.05344 counts while a page is transcribed). `compactness`: ln N less the entropy of the row,
    normalised over the image; no boxes are needed. `mass`: the attention to the image. `gradient`: the correlation of
    the row with `Profiled.gradient` over the tokens, 0 where either is constant; it knows the answer, so it is an
    oracle and no method.
    """
    check_choice("--criterion", criterion, CRITERIA)
    if criterion == "gradient":
        assert seen.gradient is not None
        return _correlation(seen.asked.double(), seen.gradient.double()[:, None, None])
    if criterion == "hits":
        best = seen.asked.argmax(-1)
        there = seen.evidence[:, None, None].expand(seen.asked.shape).gather(-1, best[..., None]).squeeze(-1)
        return there.double() / seen.evidence.sum(-1).clamp_min(1)[:, None, None]
    if criterion == "evidence":
        there = seen.evidence[:, None, None]
        return ((seen.asked.double() - seen.unasked.double()) * there).sum(-1)
    mass = seen.asked.double().sum(-1)
    if criterion == "mass":
        return mass
    shares = seen.asked.double() / mass.clamp_min(1e-30)[..., None]
    logarithms = shares.clamp_min(1e-30).log()
    return math.log(shares.shape[-1]) + (shares * logarithms).sum(-1)


def reliability(scores: Tensor) -> float:
    """Spearman's rank correlation between two halves of the questions, every second one, over all heads.

    `scores` are `[S, L, H]`, of two questions or more; ties take the mean of their ranks. 0 where a half is constant.
    """
    one, other = (_ranks(half.mean(0).flatten()) for half in (scores[::2], scores[1::2]))
    one, other = one - one.mean(), other - other.mean()
    scale = float(one.norm() * other.norm())
    return float(one @ other) / scale if scale else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0; equal values have the mean of theirs."""
    below = (values[None] < values[:, None]).sum(1)
    same = (values[None] == values[:, None]).sum(1)
    return below.double() + (same.double() - 1) / 2


def _correlation(rows: Tensor, target: Tensor) -> Tensor:
    """Pearson's, over the last dimension."""
    rows, target = rows - rows.mean(-1, keepdim=True), target - target.mean(-1, keepdim=True)
    scale = rows.norm(dim=-1) * target.norm(dim=-1)
    return (rows * target).sum(-1) / scale.masked_fill(scale == 0, 1)


def mean_weights(scores: Tensor) -> Tensor:
    """The mean of `[S, L, H]` over the questions, `[L, H]`; heads below 0 count nothing."""
    return scores.mean(0).clamp_min(0)


def named_weights(weights: Tensor) -> tuple[tuple[int, int, float], ...]:
    """`[L, H]` as a profile's weights, (layer, head, weight): those above 0."""
    rows = enumerate(weights.tolist())
    return tuple((layer, head, value) for layer, row in rows for head, value in enumerate(row) if value > 0)
