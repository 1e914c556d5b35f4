"""Consensus-diversity selection of a batch: the steps put together, and what they found."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.heads import best_heads
from finepruner_lmms.heads.consensus.presets import PRESETS, Preset
from finepruner_lmms.heads.consensus.steps import (
    STRATEGIES,
    adaptive_count,
    add_diversity,
    chosen_by_strategies,
    complexity,
    complexity_parts,
    consensus_heads,
    consistency,
    dynamic_threshold,
    fuse,
    fusion_weights,
    gap_count,
    scaled_quality,
    strategy_quality,
    stretch,
    weighted_votes,
)
from finepruner_lmms.heads.view import HeadView, min_max, parts
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.precision import for_choosing

if TYPE_CHECKING:
    from torch import Tensor


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

    def of_rows(self, rows: slice) -> Consensus:
        """The same of some samples."""
        chosen: dict[str, Any] = {}
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), torch.Tensor):
                chosen[f.name] = value[rows]
        return replace(self, **chosen)

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

    `heads` is the number that complexity adjusts in the preset `calibrated`; the others read none. Scores are float32
    or better, also under `torch.autocast`. Raises `FieldError` for an unknown preset or attention that is not finite.
    """
    if attention.ndim != 3:
        raise FieldError("attention", f"shape {list(attention.shape)}; expected [batch, heads, visual tokens]")
    if not bool(torch.isfinite(attention).all()):
        raise FieldError("attention", "holds NaN or infinite values")
    with for_choosing(attention.device):
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
