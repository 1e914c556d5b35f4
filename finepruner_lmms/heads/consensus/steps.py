"""The five steps of consensus-diversity selection, as functions of a batch: B samples, S strategies, H heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from finepruner_lmms.heads import ablation, consensus_registry
from finepruner_lmms.heads.consensus.presets import Preset
from finepruner_lmms.heads.view import EPS, HeadView, parts, unit_rows
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.fused import kernels_for

if TYPE_CHECKING:
    from torch import Tensor

MOST_DIVERSE = 32
"""At most so many heads are added for diversity: a fixed number of steps, whatever the batch needs."""

# -- step 1: strategies and their quality -----------------------------------------------------------------------------


STRATEGIES: dict[str, Callable[[HeadView], Tensor]] = {
    "sum": ablation.visual_mass,
    "sparsity": consensus_registry.sparsity,
    "hierarchical": consensus_registry.hierarchical,
    "graph_based": consensus_registry.graph_based,
    "top_k_sum": consensus_registry.top_k_sum,
    "max_attention": ablation.max_attention,
    "attention_range": ablation.attention_range,
    "multi_objective": consensus_registry.multi_objective,
}


def strategy_quality(scores: Tensor, mass: Tensor) -> Tensor:
    """How far to trust each strategy, `[B, S]`, from its `scores` `[B, S, H]` and the heads' visual `mass` `[B, H]`.

    Spread, balance, and agreement with the mass.
    """
    low, high = scores.aminmax(dim=-1)
    balance = 1 - ((high - low) / (scores.mean(-1) + EPS)).clamp(0, 1)
    agreement = torch.linalg.vecdot(unit_rows(scores), unit_rows(mass)[:, None]).abs()
    spread = scores.std(-1) if scores.shape[-1] > 1 else torch.zeros_like(low)
    return 0.4 * spread + 0.3 * balance + 0.3 * agreement


def scaled_quality(scores: Tensor, mass: Tensor) -> Tensor:
    """As `strategy_quality`, of scores from 0 to 1: spread, balance and rank correlation are from 0 to 1, too."""
    spread = (2 * scores.std(-1)).clamp_max(1) if scores.shape[-1] > 1 else torch.zeros_like(scores[..., 0])
    balance = 1 - (2 * scores.mean(-1) - 1).abs()
    places = ranks(scores).double(), ranks(mass).double()[:, None]
    centred = [unit_rows(place - place.mean(-1, keepdim=True)) for place in places]
    return 0.4 * spread + 0.3 * balance + 0.3 * torch.linalg.vecdot(*centred).abs()


def chosen_by_strategies(scores: Tensor, quality: Tensor, cuts: tuple[float, float] = (0.4, 0.7)) -> Tensor:
    """Which heads each strategy chooses, `[B, S, H]` bool: the fewer, the better the strategy."""
    heads = scores.shape[-1]
    base = heads // 2
    few, some, many = max(1, int(0.6 * base)), base, min(heads, int(1.3 * base))
    count = torch.where(quality > cuts[1], few, torch.where(quality > cuts[0], some, many))
    return ranks(scores) < count[..., None]


def ranks(scores: Tensor) -> Tensor:
    """The place of each of `scores` `[..., H]`, 0 for the largest, the lower head first on a tie."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.zeros_like(order).scatter_(-1, order, place)


# -- step 2: votes and threshold --------------------------------------------------------------------------------------


def weighted_votes(scores: Tensor, quality: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Votes and weighted scores of each head, both `[B, H]`."""
    ballot = quality[..., None] * chosen
    return ballot.sum(1), (ballot * scores).sum(1)


def consistency(chosen: Tensor) -> Tensor:
    """The mean Jaccard overlap of two strategies' choices, `[B]`; 0 for a single strategy."""
    picked = chosen.to(torch.float64)
    common = picked @ picked.transpose(1, 2)
    sizes = picked.sum(-1)
    overlap = common / (sizes[:, :, None] + sizes[:, None] - common).clamp_min(1)
    strategies = chosen.shape[1]
    pairs = strategies * (strategies - 1)
    return (overlap.sum((1, 2)) - overlap.diagonal(dim1=1, dim2=2).sum(-1)) / max(pairs, 1)


def dynamic_threshold(agreement: Tensor, rules: Preset) -> Tensor:
    """The share of all votes, `[B]`, that makes a consensus head: high where strategies agree."""
    (slope, cap), (low_slope, floor) = rules.agreed, rules.split
    high = (rules.base * (1 + slope * agreement)).clamp_max(cap)
    low = (low_slope * rules.base * agreement).clamp_min(floor)
    middle = torch.full_like(agreement, rules.otherwise * rules.base)
    return torch.where(agreement > 0.6, high, torch.where(agreement < 0.2, low, middle))


# -- step 3: how many heads -------------------------------------------------------------------------------------------


def stretch(values: Tensor, measured: tuple[float, float], low: float, high: float) -> Tensor:
    """Move the range that was `measured` to `low`..`high`, in a straight line; what leaves 0..1 is cut."""
    slope = (high - low) / (measured[1] - measured[0])
    return (low + slope * (values - measured[0])).clamp(0, 1)


def complexity_parts(view: HeadView, scale_free: bool = False) -> Tensor:
    """How different the heads are, how flat and how uneven: `[B, 3]`; `scale_free`, whatever their visual mass."""
    heads, size = view.attention.shape[1:]
    if heads > 1:
        together = view.unit.sum(1)
        cosines = torch.linalg.vecdot(together, together) - torch.linalg.vecdot(view.unit, view.unit).sum(-1)
        different = 1 - cosines / (heads * (heads - 1))
    else:
        different = torch.full_like(view.entropy[:, 0], 0.5)
    # of a single token, all attention is as flat as it can be
    flat = view.entropy.mean(-1) / math.log(size) if size > 1 else torch.ones_like(view.entropy[:, 0])
    if scale_free:
        square = view.raw_variance / (view.mass / size).square().clamp_min(1e-30)  # of the coefficient of variation
        uneven = (square / (1 + square)).mean(-1)
    else:
        uneven = view.raw_variance.mean(-1) / (view.mass.mean(-1) / size + EPS)
    return torch.stack([different, flat, uneven.clamp(0, 1)], dim=1)


def complexity(components: Tensor) -> Tensor:
    """0.4, 0.3 and 0.3 of `complexity_parts`, `[B, 3]`: `[B]`."""
    different, flat, uneven = components.unbind(-1)
    return 0.4 * different + 0.3 * flat + 0.3 * uneven


def gap_count(votes: Tensor, ignore_ties: bool = False) -> Tensor:
    """How many heads stand before the first clear gap of the sorted votes, `[B]`; a quarter of all without one.

    A gap is clear above the mean by half a standard deviation of all gaps, or with `ignore_ties` of those above 0.
    """
    heads = votes.shape[1]
    if heads < 3:
        return torch.full((len(votes),), max(heads // 4, 1), device=votes.device)
    ordered = votes.sort(dim=1, descending=True).values
    gaps = ordered[:, :-1] - ordered[:, 1:]
    if ignore_ties:
        real = gaps > 0
        count = real.sum(1, keepdim=True).clamp_min(1)
        mean = gaps.sum(1, keepdim=True) / count
        spread = (((gaps - mean) * real).square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
        clear = real & (gaps > mean + 0.5 * spread)
    else:
        clear = gaps > gaps.mean(1, keepdim=True) + 0.5 * gaps.std(1, keepdim=True)
    first = clear.int().argmax(1) + 1
    return torch.where(clear.any(1), first, heads // 4)


def adaptive_count(gap: Tensor, complex_: Tensor, heads: int) -> Tensor:
    """More heads for complex attention, fewer for simple: `[B]`, from 1 to `heads`."""
    more = (gap * (1.2 + 0.3 * complex_)).floor().long()
    fewer = (gap * (0.7 + 0.6 * complex_)).floor().long()
    return torch.where(complex_ > 0.7, more, torch.where(complex_ < 0.3, fewer, gap)).clamp(1, heads)


# -- step 4: consensus and diversity ----------------------------------------------------------------------------------


def consensus_heads(votes: Tensor, total: Tensor, needed: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The rank of each head among those with the votes `needed` `[B]`, and how many of them fit `target`: `[B]`."""
    enough = votes >= needed[:, None]
    rank = ranks((votes + 0.1 * total).masked_fill(~enough, float("-inf")))
    return rank, torch.minimum(enough.sum(1), target)


def add_diversity(
    cosine: Tensor, mass: Tensor, rank: Tensor, agreed: Tensor, target: Tensor, proper: bool = False
) -> tuple[Tensor, Tensor]:
    """Fill up to `target` with heads unlike the consensus: the order of all heads `[B, H]`, and how many count `[B]`.

    `cosine` `[B, H, H]` says how alike heads are, `rank` and `agreed` who is in the consensus. Without consensus heads,
    start at the largest `mass` and go far from what is chosen.
    """
    heads = rank.shape[1]
    member = rank < agreed[:, None]
    unlike = 1 - (cosine * member[:, None]).sum(-1) / agreed.clamp_min(1)[:, None]
    nothing = (agreed == 0)[:, None]
    barred = torch.zeros_like(unlike).masked_fill_(member, float("-inf"))
    first, base = torch.where(nothing, mass, unlike) + barred, 0.6 * unlike + 0.4
    picks = _unlike(cosine, base, first, nothing, barred, proper)
    number = torch.arange(MOST_DIVERSE, device=rank.device)
    places = (agreed[:, None] + number).masked_fill(number >= (target - agreed)[:, None], heads)
    place = torch.where(member, rank, heads)  # in the final order
    place = place.scatter_reduce(1, picks, places, "amin")
    order = place.argsort(dim=1, stable=True)
    return order, (place < heads).sum(1)


def _unlike(cosine: Tensor, base: Tensor, first: Tensor, nothing: Tensor, barred: Tensor, proper: bool) -> Tensor:
    """`MOST_DIVERSE` picks `[B, MOST_DIVERSE]` of heads that are not `barred`: the best of `first`, then of the others.

    Always as many steps, so that nothing has to be asked of the device; who asked for fewer does not count the rest.
    """
    if (fused := kernels_for(cosine)) is not None:
        steps = torch.arange(MOST_DIVERSE, dtype=base.dtype, device=base.device).clamp_min_(1)
        return fused.unlike_heads(cosine, base, first, nothing, torch.full_like(steps, 0.4) / steps, proper)
    heads = base.shape[1]
    total, near = torch.zeros_like(base), torch.full_like(base, float("-inf" if proper else "inf"))
    extreme = torch.maximum if proper else torch.minimum
    gone = torch.full_like(base[:, :1], float("-inf"))
    score, picks = first, []
    for step in range(MOST_DIVERSE):
        if step:
            score = torch.where(nothing, -near, torch.sub(base, total, alpha=0.4 / step)) + barred
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        barred.scatter_(1, pick, gone)
        row = cosine.gather(1, pick[..., None].expand(-1, -1, heads)).squeeze(1)
        total.add_(row)
        extreme(near, row, out=near)
    return torch.cat(picks, 1)


# -- step 5: fusion ---------------------------------------------------------------------------------------------------


def fuse(attention: Tensor, weights: Tensor) -> Tensor:
    """The token scores `[B, N]`: rows `[B, H, N]` added up by `weights` `[B, H]`, in float64."""
    rows = zip(parts(attention), parts(weights), strict=True)
    return torch.cat([(weight[:, None] @ part.double()).squeeze(1) for part, weight in rows])


def fusion_weights(
    quality: Tensor,
    chosen: Tensor,
    mass: Tensor,
    order: Tensor,
    agreed: Tensor,
    count: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """The weight of each head, `[B, H]`, 0 where not chosen; a sample's weights sum to 1."""
    supporters = chosen.sum(1)
    support = (quality[..., None] * chosen).sum(1) / supporters.clamp_min(1)
    for_consensus = torch.where(supporters > 0, 1 + 0.5 * support, 1.2)
    for_diversity = 0.8 + 0.4 * mass / (mass.amax(1, keepdim=True) + EPS)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    place = torch.zeros_like(order).scatter_(1, order, place)
    raw = torch.where(place < agreed[:, None], for_consensus, for_diversity)
    return (raw / temperature).masked_fill(place >= count[:, None], float("-inf")).softmax(-1)
