"""CoRePrune: what the attention's output would lose with a set of tokens, and the tokens that are worth rescuing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_integer
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.one_drop import OneDrop
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("coreprune")
@dataclass(frozen=True, kw_only=True)
class CoRePrune(OneDrop):
    """Keeps the tokens whose absence would change most what the question's words take from the image.

    The method's second stage. Before decoder layer `layer` (None: a quarter of the way down, the published 8 of 32),
    all tokens are deleted in thought, which moves each word's attention output Y by ‖Σ a·(V - Y)‖ / (1 - Σ a), the mean
    over heads and words; then those `rescued` (4) tokens at a time whose return undoes most of it come back, until the
    budget is filled. Positions are kept. Its first stage drops tokens inside the vision tower; here any method before
    the language model takes that place (`divprune+coreprune`).
    """

    usual_depth: ClassVar[Fraction | None] = Fraction(1, 4)

    layer: int | None = None
    rescued: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("rescued", self.rescued, 1)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Rescue until `retained` are kept; the scores are what each token's return undoes of losing all."""
        words, present = context.text_present, context.present
        attention = context.text_attention if words.shape[1] else context.attention[:, :, None]
        damage = Damage(attention, context.values, context.text_output, receivers(words, attention.shape[2]))
        keep, first = torch.zeros_like(present), None
        for done in range(0, max(retained, 1), self.rescued):
            worth = -damage.with_one_back(present & ~keep)
            first = worth if first is None else first
            required = None if done or context.required is None else context.required
            more = min(self.rescued, retained - done)
            keep = keep | top_mask(worth, more, present & ~keep, required)
        return Selection(keep, first)


def receivers(words: Tensor, rows: int) -> Tensor:
    """Which of `rows` rows of text count, `[B, rows]`: the words `[B, T]`, and the last one where there are none."""
    last = torch.arange(rows, device=words.device) == rows - 1
    there = words if words.shape[1] else words.new_zeros(len(words), rows)
    return torch.where(there.any(1, keepdim=True), there, last)


class Damage:
    """How far attention outputs move when tokens are deleted, in float64: a small difference of large sums.

    `attention` `[B, H, T, V]`, `values` `[B, H, V, dh]`, `outputs` `[B, H, T, dh]` before the output projection, and
    the T rows that count, `[B, T]`.
    """

    def __init__(self, attention: Tensor, values: Tensor, outputs: Tensor, rows: Tensor) -> None:
        self.attention, self.values, self.outputs = attention.double(), values.double(), outputs.double()
        shares = rows.double() / rows.sum(1, keepdim=True)
        self.shares = (shares / attention.shape[1])[:, None, :, None]
        lengths = (self.values.square().sum(-1)[:, :, None] + self.outputs.square().sum(-1, keepdim=True)).sub_(
            2 * self.outputs @ self.values.mT
        )
        self.own = self.attention.square().mul_(lengths)
        """`[B, H, T, V]`: ‖a·(V - Y)‖², what a token alone moves the output by."""

    def without(self, deleted: Tensor) -> tuple[Tensor, Tensor]:
        """Of the `deleted` tokens `[B, V]`: Σ a·(V - Y) `[B, H, T, dh]`, and Σ a `[B, H, T, 1]`."""
        gone = self.attention * deleted[:, None, None]
        mass = gone.sum(-1, keepdim=True)
        return gone @ self.values - mass * self.outputs, mass

    def of(self, deleted: Tensor) -> Tensor:
        """`[B]`: the mean distance by which the outputs move without the `deleted` tokens `[B, V]`."""
        moved, mass = self.without(deleted)
        distance = torch.linalg.vector_norm(moved, dim=-1, keepdim=True) / _rest(mass)
        return (distance * self.shares).sum((1, 2, 3))

    def with_one_back(self, deleted: Tensor) -> Tensor:
        """`[B, V]`: `of(deleted)` if each token alone came back; of tokens that are not deleted it means nothing."""
        moved, mass = self.without(deleted)
        along = moved @ self.values.mT - (moved * self.outputs).sum(-1, keepdim=True)
        left = moved.square().sum(-1, keepdim=True) + self.own - 2 * self.attention * along
        distance = left.clamp_min_(0).sqrt_() / _rest(mass - self.attention)
        return (distance * self.shares).sum((1, 2))


def _rest(mass: Tensor) -> Tensor:
    """What is left of a row of attention, which sums to 1."""
    return (1 - mass).clamp_min(1e-12)
