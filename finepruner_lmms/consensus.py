"""Intelligent Consensus-Diversity selection of heads, in five steps (after the LLaVA-FinePruner-Head code base).

1. Every strategy scores the heads, chooses some, and gets a *quality*.
2. The strategies *vote* for the heads they chose, weighted by quality; a *threshold* follows from how much they agree.
3. The largest gap between votes, and the *complexity* of the attention, give the number of heads.
4. Heads above the threshold are the *consensus*; *diversity* fills what is missing with heads unlike them.
5. The chosen heads' rows are *fused* with weights.

Presets differ in strategies and thresholds (`PRESETS`). Everything is computed for a batch at a time, in a number of
operations that depends neither on the batch nor on the heads; what concerns a head as a whole is float64. The formulas
of the strategies are not those of `heads`, though some names are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.checks import check_choice
from finepruner_lmms.heads import ablation, best_heads, consensus_registry
from finepruner_lmms.heads.view import EPS, HeadView, min_max, parts, unit_rows

MOST_DIVERSE = 32
"""At most so many heads are added for diversity: a fixed number of steps, whatever the batch needs."""


@dataclass(frozen=True)
class Preset:
    """What tells two versions of the algorithm apart."""

    strategies: tuple[str, ...]
    base: float
    agreed: tuple[float, float]  # above a consistency of 0.6: slope and cap
    split: tuple[float, float]  # below 0.2: slope and floor
    otherwise: float  # share of `base` in between
    scales: Scales | None = None  # of `calibrated`


@dataclass(frozen=True)
class Scales:
    """What `calibrated` changes, so that every branch is reached by real attention.

    The ranges are quantiles of the quantity over the demo model's layer 1 on the tuning split; what lies in such a
    range is stretched to where the original has its thresholds.
    """

    quality: tuple[float, float]  # a third of the strategies below, a third above: they choose many, few heads
    agreement: tuple[float, float]  # 20 % and 80 %, stretched to 0.2 and 0.6
    complexity: tuple[float, float]  # 20 % and 80 %, stretched to 0.3 and 0.7
    quota: float = 0.25  # share of the heads reserved for diversity
    temperature: float = 0.1  # of the fusion weights


_ALL = (
    "sum",
    "sparsity",
    "hierarchical",
    "graph_based",
    "top_k_sum",
    "max_attention",
    "attention_range",
    "multi_objective",
)
PRESETS = {
    "doc": Preset(_ALL, 1 / 3, (1.0, 0.5), (2.0, 0.15), 1.0),
    "latest": Preset(("sparsity", "hierarchical", "attention_range"), 1 / 4, (0.8, 0.4), (1.5, 0.1), 0.9),
    "calibrated": Preset(_ALL, 1 / 3, (1.0, 0.5), (2.0, 0.15), 1.0, Scales((0.53, 0.63), (0.31, 0.44), (0.59, 0.67))),
}


@dataclass(frozen=True)
class ConsensusSelection:
    """What was chosen for one sample. `heads` are the consensus heads, then those added for diversity."""

    heads: list[int]
    consensus: list[int]
    diversity: list[int]
    weights: list[float]
    token_scores: Tensor
    qualities: dict[str, float]
    threshold: float
    complexity: float
    target: int


@dataclass(frozen=True)
class Consensus:
    """The same for a batch, on its device: B samples, S strategies, H heads, N tokens.

    `order` `[B, H]` lists the chosen heads first, `count` `[B]` says how many those are and `agreed` `[B]` how many
    of them are consensus heads; `weights` `[B, H]` are by head, 0 where not chosen.
    """

    preset: str
    names: tuple[str, ...]
    qualities: Tensor  # [B, S]
    chosen: Tensor  # [B, S], how many heads each strategy chooses
    flat: Tensor  # [B] bool, whether a strategy cannot tell heads apart
    consistency: Tensor
    threshold: Tensor
    complexity: Tensor
    complexity_parts: Tensor  # [B, 3]: how different, flat and uneven
    gap: Tensor
    target: Tensor
    order: Tensor
    agreed: Tensor
    count: Tensor
    weights: Tensor
    token_scores: Tensor
    sparsest: Tensor  # [B, H], heads by the registry's sparsity: what the choice is compared with

    def record(self, row: int) -> ConsensusSelection:
        """One sample as plain values; waits for the device."""
        count, agreed = int(self.count[row]), int(self.agreed[row])
        heads = self.order[row, :count].tolist()
        return ConsensusSelection(
            heads=heads,
            consensus=heads[:agreed],
            diversity=heads[agreed:],
            weights=self.weights[row, self.order[row, :count]].tolist(),
            token_scores=self.token_scores[row],
            qualities=dict(zip(self.names, self.qualities[row].tolist(), strict=True)),
            threshold=float(self.threshold[row]),
            complexity=float(self.complexity[row]),
            target=int(self.target[row]),
        )


def select(attention: Tensor, preset: str = "doc", heads: int | None = None) -> list[ConsensusSelection]:
    """Choose heads for each of `attention` `[B, H, N]`, the last prompt token's attention to the visual tokens.

    `heads` is the number that complexity adjusts in the preset `calibrated`; the others read none. Raises `ValueError`
    for an unknown preset or attention that is not finite.
    """
    if attention.ndim != 3:
        raise ValueError(f"attention: shape {list(attention.shape)}; expected [batch, heads, visual tokens]")
    if not bool(torch.isfinite(attention).all()):
        raise ValueError("attention: holds NaN or infinite values")
    result = select_batch(attention, preset, heads)
    return [result.record(row) for row in range(len(attention))]


def select_batch(attention: Tensor, preset: str = "doc", heads: int | None = None) -> Consensus:
    """The five steps; no wait for the device."""
    check_choice("preset", preset, tuple(PRESETS))
    rules, scales = PRESETS[preset], PRESETS[preset].scales
    looked = [_look(rows, rules) for rows in parts(attention)]
    scores, mass, complexities, cosine, sparsity = (torch.cat(part) for part in zip(*looked, strict=True))
    if scales is None:
        quality, cuts = strategy_quality(scores, mass), (0.4, 0.7)
    else:
        scores = min_max(scores)
        quality, cuts = scaled_quality(scores, mass), scales.quality
    chosen = chosen_by_strategies(scores, quality, cuts)
    votes, total = weighted_votes(scores, quality, chosen)
    agreement, complex_ = consistency(chosen), complexity(complexities)
    if scales is not None:
        agreement, complex_ = (
            stretch(agreement, scales.agreement, 0.2, 0.6),
            stretch(complex_, scales.complexity, 0.3, 0.7),
        )
    threshold = dynamic_threshold(agreement, rules)
    gap = gap_count(votes if scales is None else votes + 0.1 * min_max(total), ignore_ties=scales is not None)
    base = gap if scales is None or heads is None else torch.full_like(gap, heads)
    target = adaptive_count(base, complex_, attention.shape[1])
    reserved = (
        torch.zeros_like(target) if scales is None else (scales.quota * target).ceil().long().clamp(max=target - 1)
    )
    agreed_rank, agreed = consensus_heads(votes, total, threshold * quality.sum(1), target - reserved)
    order, count = add_diversity(cosine, mass, agreed_rank, agreed, target, proper=scales is not None)
    temperature = 1.0 if scales is None else scales.temperature
    weights = fusion_weights(quality, chosen, mass, order, agreed, count, temperature)
    return Consensus(
        preset=preset,
        names=rules.strategies,
        qualities=quality,
        chosen=chosen.sum(-1),
        flat=(scores.amax(-1) == scores.amin(-1)).any(1),
        consistency=agreement,
        threshold=threshold,
        complexity=complex_,
        complexity_parts=complexities,
        gap=gap,
        target=target,
        order=order,
        agreed=agreed,
        count=count,
        weights=weights,
        token_scores=fuse(attention, weights),
        sparsest=best_heads(sparsity, attention.shape[1]),
    )


def _look(attention: Tensor, rules: Preset) -> tuple[Tensor, ...]:
    """All that the steps need of the attention: scores, mass, complexity's parts, cosines between heads, sparsity."""
    view = HeadView(attention, attention.shape[1], "resoftmax" if rules.scales is None else "renormalise")
    scores = torch.stack([STRATEGIES[name](view) for name in rules.strategies], dim=1)
    complexities = complexity_parts(view, scale_free=rules.scales is not None)
    return scores, view.mass, complexities, view.unit @ view.unit.transpose(1, 2), STRATEGIES["sparsity"](view)


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
    flat = view.entropy.mean(-1) / math.log(size)
    if scale_free:
        square = view.raw_variance / (view.mass / size).square().clamp_min(1e-30)  # of the coefficient of variation
        uneven = (square / (1 + square)).mean(-1)
    else:
        uneven = view.raw_variance.mean(-1) / (view.mass.mean(-1) / size + EPS)
    return torch.stack([different, flat, uneven.clamp(0, 1)], dim=1)


def complexity(components: Tensor) -> Tensor:
    """0.4, 0.3 and 0.3 of `complexity_parts`, `[B, 3]`: `[B]`."""
    return components @ components.new_tensor([0.4, 0.3, 0.3])


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
    score, base = torch.where(nothing, mass, unlike), 0.6 * unlike + 0.4
    total, near = torch.zeros_like(unlike), torch.full_like(unlike, float("-inf" if proper else "inf"))
    extreme = torch.maximum if proper else torch.minimum
    barred = torch.zeros_like(unlike).masked_fill_(member, float("-inf"))
    gone = torch.full_like(unlike[:, :1], float("-inf"))
    picks = []
    # always as many steps, so that nothing has to be asked of the device; those beyond the target do not count
    for step in range(MOST_DIVERSE):
        if step:
            score = torch.where(nothing, -near, torch.sub(base, total, alpha=0.4 / step))
        pick = (score + barred).argmax(1, keepdim=True)
        picks.append(pick)
        barred.scatter_(1, pick, gone)
        row = cosine.gather(1, pick[..., None].expand(-1, -1, heads)).squeeze(1)
        total.add_(row)
        extreme(near, row, out=near)
    number = torch.arange(MOST_DIVERSE, device=rank.device)
    places = (agreed[:, None] + number).masked_fill(number >= (target - agreed)[:, None], heads)
    place = torch.where(member, rank, heads)  # in the final order
    place = place.scatter_reduce(1, torch.cat(picks, 1), places, "amin")
    order = place.argsort(dim=1, stable=True)
    return order, (place < heads).sum(1)


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
