"""CoRePrune: what the attention's output would lose with a set of tokens, and the tokens that are worth rescuing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_integer
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.row_slices import row_slices
from finepruner_lmms.ops.selection import mask_to_index, top_mask
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

    caveat: ClassVar[str] = "the published first stage, inside the vision tower, is not in it"
    usual_depth: ClassVar[Fraction | None] = Fraction(1, 4)

    layer: int | None = None
    rescued: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("rescued", self.rescued, 1)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Rescue until `retained` are kept; the scores are what each token's return undoes of losing all."""
        words, present, required = context.text_present, context.present, context.required
        attention = context.text_attention if words.shape[1] else context.attention[:, :, None]
        values, outputs, rows = context.values, context.text_output, receivers(words, attention.shape[2])
        found = [
            self._rescue(
                Damage(attention[part], values[part], outputs[part], rows[part]),
                present[part],
                None if required is None else required[part],
                retained,
            )
            for part in row_slices(attention)
        ]
        keep, scores = (torch.cat(each) for each in zip(*found, strict=True))
        return Selection(keep, scores)

    def _rescue(self, damage: Damage, present: Tensor, required: Tensor | None, retained: int) -> tuple[Tensor, Tensor]:
        """Of some rows, which of the `present` tokens are kept and the first scores, both `[B, V]`."""
        first = worth = -damage.with_one_back()
        more = min(self.rescued, retained)
        keep = back = top_mask(worth, more, present, required)
        for done in range(self.rescued, retained, self.rescued):
            damage.bring_back(back, more)
            more = min(self.rescued, retained - done)
            back = top_mask(-damage.with_one_back(), more, present & ~keep)
            keep = keep | back
        return keep, first


_LEAST = 1e-12
"""Of what is left of a row of attention, which sums to 1, to divide by."""


def receivers(words: Tensor, rows: int) -> Tensor:
    """Which of `rows` rows of text count, `[B, rows]`: the words `[B, T]`, and the last one where there are none."""
    last = torch.arange(rows, device=words.device) == rows - 1
    there = words if words.shape[1] else words.new_zeros(len(words), rows)
    return torch.where(there.any(1, keepdim=True), there, last)


class Damage:
    """How far attention outputs move while tokens are deleted: all of them at first, then fewer.

    `attention` `[B, H, T, V]`, `values` `[B, H, V, dh]`, `outputs` `[B, H, T, dh]` before the output projection, and
    the T rows that count, `[B, T]`. In float64: small differences of large sums. What is known of the deleted tokens D
    is changed by each that comes back, so that a step costs no product over the head's width:

    M = Σ_D a·(V - Y) `[B, H, T, dh]`, Σ_D a `[B, H, T, 1]`, and X with ‖M - a·(V - Y)‖² = ‖M‖² + a·X for each token.
    """

    def __init__(self, attention: Tensor, values: Tensor, outputs: Tensor, rows: Tensor) -> None:
        self.attention, self.values, self.outputs = attention.double(), values.double(), outputs.double()
        shares = rows.double() / rows.sum(1, keepdim=True)
        self.shares = (shares / attention.shape[1])[:, None, :, None]
        self.mass = self.attention.sum(-1, keepdim=True)
        taken = self.attention @ self.values
        self.moved = taken - self.mass * self.outputs
        self._along = self.outputs @ self.values.mT  # Y·V
        lengths = (_squares(self.values)[:, :, None] + _squares(self.outputs)[..., None]).sub_(self._along, alpha=2)
        # X = a·‖V - Y‖² - 2 M·(V - Y)
        self._cross = lengths.mul_(self.attention).sub_(taken @ self.values.mT, alpha=2)
        self._cross.addcmul_(self._along, self.mass, value=2).add_(self._inside(self.moved), alpha=2)
        self._buffers = torch.empty_like(self.attention), torch.empty_like(self.attention)

    def of_deleted(self) -> Tensor:
        """`[B]`: the mean distance by which the outputs move."""
        distance = torch.linalg.vector_norm(self.moved, dim=-1, keepdim=True) / (1 - self.mass).clamp_min(_LEAST)
        return (distance * self.shares).sum((1, 2, 3))

    def with_one_back(self) -> Tensor:
        """`[B, V]`: the same if each token alone came back; of tokens that are not deleted it means nothing."""
        distance, rest = self._buffers
        torch.addcmul(_squares(self.moved)[..., None], self.attention, self._cross, out=distance).clamp_min_(0).sqrt_()
        distance.div_(torch.add(self.attention, 1 - self.mass, out=rest).clamp_min_(_LEAST))
        # one product instead of a sum over all heads and words
        shares = self.shares.expand_as(self.mass).flatten(1)
        return (shares[:, None] @ distance.flatten(1, 2)).squeeze(1)

    def bring_back(self, back: Tensor, count: int) -> None:
        """The tokens `back` `[B, V]`, at most `count` in a row, are deleted no longer."""
        index = mask_to_index(back, count)
        values = self.values.gather(
            2, index[:, None, :, None].expand(-1, *self.values.shape[1:2], -1, self.values.shape[3])
        )
        attention = self.attention.gather(3, index[:, None, None].expand(-1, *self.attention.shape[1:3], -1))
        attention = attention * back.gather(1, index)[:, None, None]  # a row with fewer has others in their place
        mass = attention.sum(-1, keepdim=True)
        moved = attention @ values - mass * self.outputs
        # X grows by 2 times Σ a·(V - Y) of those that come back, along V - Y: a·V·V of few, Y·V, and a number a row
        few = torch.nn.functional.pad(values @ self.values.mT, (0, 0, 0, 1), value=1.0)
        weights = torch.cat([attention, -self._inside(moved)], dim=-1)
        cross = self._cross.flatten(0, 1)
        cross.baddbmm_(weights.flatten(0, 1), few.flatten(0, 1), alpha=2)
        self._cross.addcmul_(self._along, mass, value=-2)
        self.mass, self.moved = self.mass - mass, self.moved - moved

    def _inside(self, moved: Tensor) -> Tensor:
        """What of `moved` lies along Y: `[B, H, T, 1]`."""
        return (moved * self.outputs).sum(-1, keepdim=True)


def _squares(vectors: Tensor) -> Tensor:
    """Squared lengths of `[..., dh]`, without a copy of their size."""
    return torch.linalg.vector_norm(vectors, dim=-1).square()
