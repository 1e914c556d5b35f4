"""What happened in one call: which visual tokens were retained where, and how long each cache became."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from finepruner_lmms.pruners.base import Reduction


@dataclass
class Trace:
    """The record of one prefill.

    `keep_masks` maps the first decoder layer that sees fewer tokens to the kept ones, `[B, V]` bool (key 0 for
    vision-side methods): the N of the image, then tokens that a method made. They stay on the device until somebody
    looks at `kept` or `tokens_entering`.
    """

    num_layers: int = 0
    num_visual_tokens: int = 0
    has_image: tuple[bool, ...] = ()
    keep_masks: dict[int, Tensor] = field(default_factory=dict)
    kv_lengths: list[int] = field(default_factory=list)
    """Cache length of each layer after prefill, in tokens (padding included)."""
    chosen_heads: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By layer, where heads were selected: `[B, heads]`, best first, -1 for none; and every head's score `[B, H]`."""
    details: dict[int, Any] = field(default_factory=dict)
    """By layer, what a method says of its choice (`consensus.Consensus`); its rows are those of the call."""
    suspects: dict[str, Tensor] = field(default_factory=dict)

    @property
    def heads(self) -> Tensor | None:
        """`[B, heads]`, best first, where heads were selected: at the first drop."""
        return self.chosen_heads[min(self.chosen_heads)][0] if self.chosen_heads else None

    @property
    def head_scores(self) -> Tensor | None:
        """`[B, H]`, the score of every head, where heads were selected: at the first drop."""
        return self.chosen_heads[min(self.chosen_heads)][1] if self.chosen_heads else None

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """First layer that sees only these → per row the retained visual tokens, ascending indices into 0..N-1."""
        return {
            layer: [row.nonzero().squeeze(1).cpu() for row in mask[:, : self.num_visual_tokens]]
            for layer, mask in sorted(self.keep_masks.items())
        }

    @property
    def tokens_entering(self) -> list[list[int]]:
        """Per row, per layer: the visual tokens that enter it."""
        counts = {layer: mask.sum(1).tolist() for layer, mask in self.keep_masks.items()}
        table = []
        for row, shown in enumerate(self.has_image):
            current, entering = self.num_visual_tokens if shown else 0, []
            for layer in range(self.num_layers):
                current = counts[layer][row] if layer in counts else current
                entering.append(current)
            table.append(entering)
        return table

    def start(self, num_layers: int, num_visual_tokens: int, has_image: tuple[bool, ...]) -> None:
        """Begin a new prefill: forget the previous one."""
        self.__init__(num_layers, num_visual_tokens, has_image)  # type: ignore[misc]

    def check_finite(self) -> None:
        """Raise `ValueError` if a score was not finite. Waits for the device, so call it after the prefill."""
        for what, finite in self.suspects.items():
            if not bool(finite):
                raise ValueError(f"{what}: holds NaN or infinite values, so no token can be chosen by it")

    def watch(self, what: str, values: Tensor, present: Tensor | None = None) -> None:
        """Remember to check that `values` are finite (where `present`), without waiting for the device now."""
        finite = torch.isfinite(values)
        self.suspects[what] = (finite if present is None else finite | ~present).all()

    def behind(self, reduction: Reduction) -> Trace:
        """This trace, of prompts that a vision-side method had shortened, told of the image's own tokens.

        `reduction` has a row an image, the trace a row a prompt.
        """
        keep, (_, made, _) = reduction.keep, reduction.tokens.shape
        rows = torch.tensor([row for row, shown in enumerate(self.has_image) if shown], device=keep.device)
        images, count = keep.shape
        # which of the shortened prompt's tokens are the image's own, and which of the image's these are
        order = keep.int().argsort(dim=1, descending=True, stable=True)
        place = torch.arange(made, device=keep.device).expand(images, -1) - reduction.lead
        rank = keep.sum(1, keepdim=True)
        own = (place >= 0) & (place < rank)
        spare = count + torch.arange(made, device=keep.device).expand(images, -1)
        column = torch.where(own, order.gather(1, place.clamp(0, count - 1)), spare)

        def told(mask: Tensor) -> Tensor:
            """`mask` `[images, made ...]` over the shortened image → over N, what was made, and what was merged."""
            full = torch.zeros(images, count + made, dtype=torch.bool, device=keep.device)
            full.scatter_(1, column, mask[:, :made])
            full = torch.cat([full, mask[:, made:]], dim=1)
            return full.new_zeros(len(self.has_image), full.shape[1]).index_copy(0, rows, full)

        masks = {0: told(torch.ones_like(own))}
        masks |= {layer: told(mask[rows]) for layer, mask in self.keep_masks.items()}
        return replace(self, num_visual_tokens=count, keep_masks=masks)

    def every(self, step: int) -> Trace:
        """The trace of every `step`-th row: undoes the copies that beam search makes of a sample."""
        if step == 1:
            return self
        return Trace(
            self.num_layers,
            self.num_visual_tokens,
            self.has_image[::step],
            {layer: mask[::step] for layer, mask in self.keep_masks.items()},
            list(self.kv_lengths),
            {layer: (heads[::step], scores[::step]) for layer, (heads, scores) in self.chosen_heads.items()},
            dict(self.details),
        )
