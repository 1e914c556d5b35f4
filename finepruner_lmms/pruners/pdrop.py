"""PyramidDrop: Accelerating Your LVLMs via Pyramid Visual Redundancy Reduction (Xing et al., CVPR 2025, 2410.17247)."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.base import Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

VARIANTS = ("equal", "official")
_STEPS = 10_000  # λ is solved to four decimals
# λ of the LLaVA-FinePruner-Head code base for 576 visual tokens, by decoder layers and budget
_PUBLISHED = {(32, 192): 5810, (32, 128): 4370, (32, 64): 1960, (40, 192): 5860, (40, 128): 4480, (40, 64): 2250}


@register("pdrop")
@dataclass(frozen=True, kw_only=True)
class PDrop(AttentionGuided):
    """Drops a constant share of the visual tokens at several depths, by the last prompt token's attention.

    `variant="equal"` reaches small budgets by a first drop before layer 2, then one at each quarter of the depth,
    each leaving floor(λ·current) by the attention of the layer before (the schedule of the LLaVA-FinePruner-Head code
    base). `"official"` is the released code: three drops at the quarters to floor(λ^i·N), by the attention that the
    next layer would compute, positions renumbered; λ = 0.5 is budget 270 of 576. λ follows from the budget.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.17247"
    code: ClassVar[str] = "https://github.com/Cooperx521/PyramidDrop"

    variant: str = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variant", self.variant, VARIANTS)

    @property
    def published_positions(self) -> str:
        """Only the released code renumbers."""
        return "renumbered" if self.variant == "official" else "original"

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The drops whose λ brings the layers' average nearest to the budget."""
        layers = drop_layers(self.variant, num_layers)
        nothing_left = _average(layers, [0] * len(layers), num_layers, num_visual_tokens)
        tokens = self._tokens(num_visual_tokens, least=nothing_left)
        if tokens == num_visual_tokens:
            return ()
        return _solve(self.variant, tokens, num_layers, num_visual_tokens)

    def head_attention(self, context: DecoderContext) -> Tensor:
        """The last prompt token's rows: of the layer before, or of the next one as the released code does."""
        return context.next_attention if self.variant == "official" else context.attention


def drop_layers(variant: str, num_layers: int) -> list[int]:
    """The layers before which tokens are dropped: the quarters of the depth, and 2 in the variant `equal`."""
    quarters = [num_layers * part // 4 for part in (1, 2, 3)]
    wanted = quarters if variant == "official" else [2, *(layer for layer in quarters if layer > 2)]
    layers = sorted({layer for layer in wanted if 0 < layer < num_layers})
    if not layers:
        raise FieldError("method", f"pdrop needs a decoder of 3 layers or more; this model has {num_layers}")
    return layers


def tokens_left(variant: str, share: int, drops: int, num_visual_tokens: int) -> list[int]:
    """The tokens left after each drop, for λ = `share` / 10000: floors compound in `equal`, not in `official`."""
    counts, current = [], num_visual_tokens
    for power in range(1, drops + 1):
        official = num_visual_tokens * share**power // _STEPS**power
        current = official if variant == "official" else current * share // _STEPS
        counts.append(current)
    return counts


@functools.lru_cache(maxsize=256)
def _solve(variant: str, tokens: Fraction, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
    layers = drop_layers(variant, num_layers)
    published = _PUBLISHED.get((num_layers, int(tokens))) if variant == "equal" and num_visual_tokens == 576 else None

    def average(share: int) -> Fraction:
        return _average(
            layers, tokens_left(variant, share, len(layers), num_visual_tokens), num_layers, num_visual_tokens
        )

    if published is None or tokens.denominator > 1:
        above = bisect.bisect_left(range(_STEPS), tokens, key=average)  # more of λ never leaves fewer tokens
        share = min((max(above - 1, 0), above), key=lambda share: abs(average(share) - tokens))
    else:
        share = published
    best = tokens_left(variant, share, len(layers), num_visual_tokens)
    return tuple(Stage(layer, count) for layer, count in zip(layers, best, strict=True))


def _average(layers: list[int], counts: list[int], num_layers: int, num_visual_tokens: int) -> Fraction:
    ends = [*layers[1:], num_layers]
    rest = sum((end - layer) * count for layer, end, count in zip(layers, ends, counts, strict=True))
    return Fraction(layers[0] * num_visual_tokens + rest, num_layers)
