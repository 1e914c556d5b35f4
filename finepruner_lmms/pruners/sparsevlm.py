"""SparseVLM: Visual Token Sparsification for Efficient VLM Inference (Zhang et al., ICML 2025, arXiv 2410.04417)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.clustering import merge_by_density_peaks
from finepruner_lmms.ops.selection import at_least_float32, take, top_mask
from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.base import Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

VARIANTS = ("equal", "official")
_STEPS = 512  # between two tables
# tokens kept by score at the three depths, by decoder layers and budget, of 576: the LLaVA-FinePruner-Head code base
_EQUAL = {
    32: {192: (300, 200, 110), 128: (300, 110, 35), 64: (65, 30, 15)},
    40: {192: (300, 200, 110), 128: (300, 100, 40), 64: (70, 35, 20)},
}
# and of the released code, whose budgets count the tokens leaving a layer: 15 to 18 more enter on average
_OFFICIAL = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}


@register("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVLM(AttentionGuided):
    """Keeps what the question's words look at, at three depths, and recycles part of the rest into merged tokens.

    Raters are the words after the image that the image's embeddings relate to most (section 3.2). At each drop, 30 %
    of the dropped tokens, the best of them, are clustered by density peaks, and each cluster's mean is kept (3.4).
    Positions are numbered anew, so that each layer decodes by its own cache length. `variant="equal"` meets the
    budget by the tokens entering a layer, dropping one layer earlier than the released code; `"official"` is the
    released code's tables, for 576 tokens and 32 layers at the budgets 192, 128, 96 and 64.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.04417"
    code: ClassVar[str] = "https://github.com/Gumpest/SparseVLMs"

    variant: str = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, VARIANTS)

    @property
    def published_positions(self) -> str:
        """Numbered anew."""
        return "renumbered"

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """Three drops along the published tables, interpolated between their budgets and adapted to the depth."""
        if self.variant == "official":
            tokens = self._tokens(num_visual_tokens, least=Fraction(1))
            if tokens == num_visual_tokens:
                return ()
            if (num_layers, num_visual_tokens) != (32, 576) or tokens not in _OFFICIAL:
                raise FieldError(
                    "budget",
                    f"got {self.budget!r}; sparsevlm's released tables are for 32 layers, 576 visual tokens and the "
                    f"budgets {', '.join(map(str, _OFFICIAL))}",
                    value=self.budget,
                    fix="use variant='equal' for others",
                )
            return with_merged((3, 7, 16), _OFFICIAL[int(tokens)], num_visual_tokens, official=True)
        layers = drop_layers(num_layers)
        least = _average(with_merged(layers, (0, 0, 0), num_visual_tokens), num_layers, num_visual_tokens)
        tokens = self._tokens(num_visual_tokens, least=least)
        return () if tokens == num_visual_tokens else _solve(tokens, num_layers, num_visual_tokens)

    def head_attention(self, context: DecoderContext) -> Tensor:
        """The raters' mean row in the layer before, one per head."""
        if not context.text_present.shape[1]:
            return context.attention  # no text after the image: its last token is the last of the prompt
        weights = context.once(
            "raters", lambda: rater_weights(context.visual_embeds, context.text_embeds, context.text_present)
        )
        return context.weighted_text(weights)

    def choose(self, scores: Tensor, context: DecoderContext, retained: int) -> Selection:
        """Keep the best, and merge the best of the rest."""
        recycled, clusters = recycling(context.count - retained, official=self.variant == "official")
        keep = top_mask(scores, retained, context.present, context.required)
        rest = scores.masked_fill(~context.present | keep, float("-inf"))
        again = rest.argsort(dim=1, descending=True, stable=True)[:, :recycled]
        merged, centres = merge_by_density_peaks(take(context.hidden, again), clusters)
        sources = torch.zeros_like(keep).scatter(1, again, True) & context.present
        return Selection(keep, scores, merged=merged, merged_from=again.gather(1, centres), sources=sources)


def rater_weights(visual: Tensor, text: Tensor, text_present: Tensor) -> Tensor:
    """How much each word's row counts, `[B, T]`: raters equally, the others nothing; a row sums to 1.

    `visual` `[B, N, D]` and `text` `[B, T, D]` are input embeddings. A rater is a word whose mean share of the
    visual tokens' softmax over the words is above average. Without any, the last word rates.
    """
    logits = at_least_float32(visual) @ at_least_float32(text).transpose(1, 2)
    shares = logits.masked_fill(~text_present[:, None], float("-inf")).softmax(-1).mean(1)
    mean = shares.sum(1, keepdim=True) / text_present.sum(1, keepdim=True)
    raters = (shares > mean) & text_present  # a row without words compares with NaN, which is False
    last = torch.zeros_like(raters)
    last[:, -1] = True
    raters = torch.where(raters.any(1, keepdim=True), raters, last).to(shares.dtype)
    return raters / raters.sum(1, keepdim=True)


def recycling(dropped: int, official: bool = False) -> tuple[int, int]:
    """How many of `dropped` tokens are clustered, and into how many clusters."""
    if official:
        recycled = dropped * 3 // 10 + 1
        return recycled, recycled // 10 + 1
    recycled = max(dropped * 3 // 10, 1)
    return recycled, max(recycled // 10, 1)


def drop_layers(num_layers: int) -> tuple[int, int, int]:
    """The depths of the drops: layers 2, 6, 15 of 32 and 2, 8, 20 of 40; in proportion elsewhere."""
    if num_layers == 40:
        return 2, 8, 20
    layers = 2, max(3, (6 * num_layers + 16) // 32), max(4, (15 * num_layers + 16) // 32)
    if layers[-1] >= num_layers:
        raise FieldError("method", f"sparsevlm needs a decoder of 5 layers or more; this model has {num_layers}")
    return layers


def with_merged(
    layers: tuple[int, ...], kept: tuple[int, ...], num_visual_tokens: int, official: bool = False
) -> tuple[Stage, ...]:
    """The stages that keep `kept` tokens by score, at least one fewer than they get, with the tokens they merge."""
    stages, current = [], num_visual_tokens
    for layer, wanted in zip(layers, kept, strict=True):
        count = min(wanted, current - 1)
        clusters = recycling(current - count, official)[1]
        stages.append(Stage(layer, count, clusters))
        current = count + clusters
    return tuple(stages)


@functools.lru_cache(maxsize=256)
def _solve(tokens: Fraction, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
    """The stages whose average is nearest to the budget, on the line through the published tables."""
    layers, scale = drop_layers(num_layers), Fraction(num_visual_tokens, 576)
    tables = _EQUAL.get(num_layers, _EQUAL[32])
    if num_layers in _EQUAL and tokens / scale in tables:
        kept = tuple(int(count * scale) for count in tables[int(tokens / scale)])
        return with_merged(layers, kept, num_visual_tokens)
    corners = [(0, 0, 0), *(tables[budget] for budget in sorted(tables)), (576, 576, 576)]
    best: tuple[Fraction, tuple[Stage, ...]] | None = None
    for step in range((len(corners) - 1) * _STEPS + 1):
        corner, rest = divmod(step, _STEPS)
        ends = zip(corners[corner], corners[min(corner + 1, len(corners) - 1)], strict=True)
        kept = tuple(num_visual_tokens * (a * _STEPS + rest * (b - a)) // (576 * _STEPS) for a, b in ends)
        stages = with_merged(layers, kept, num_visual_tokens)
        off = abs(_average(stages, num_layers, num_visual_tokens) - tokens)
        if best is None or off < best[0]:
            best = off, stages
    assert best is not None
    return best[1]


def _average(stages: tuple[Stage, ...], num_layers: int, num_visual_tokens: int) -> Fraction:
    ends = [*(stage.layer for stage in stages[1:]), num_layers]
    counts = ((end - stage.layer) * (stage.retained + stage.merged) for stage, end in zip(stages, ends, strict=True))
    return Fraction(stages[0].layer * num_visual_tokens + sum(counts), num_layers)
