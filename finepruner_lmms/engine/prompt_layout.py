"""Where the tokens of a batch stand: reading a left-padded prompt, and moving the kept tokens of each row together.

Everything here is plain tensor arithmetic on token positions; nothing knows transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The tokens of a batch at one depth.

    `valid` `[B, L]` is False on padding; `columns` `[B, V]` says in which column each visual token of the image
    stands, and `present` `[B, V]` whether it is still there (all False in a row without an image). V is N, and grows
    by the tokens that a method merges; visual tokens stand in the order of their numbers. `behind` `[B]` counts the
    text behind the image, `tails` too, and `tail` is the largest such count among rows with an image. `lengths` (the
    valid tokens of each row), `visual_counts` and `tails` are known on the host, so that no later step has to wait for
    the device.
    """

    valid: Tensor
    columns: Tensor
    present: Tensor
    lengths: tuple[int, ...]
    visual_counts: tuple[int, ...]
    behind: Tensor
    tails: tuple[int, ...]

    @property
    def width(self) -> int:
        """L, the columns of the batch."""
        return self.valid.shape[1]

    @property
    def padded(self) -> bool:
        """Whether any row is shorter than the batch is wide."""
        return min(self.lengths) < self.width

    @property
    def has_image(self) -> tuple[bool, ...]:
        """Which rows show an image (asked of the prompt's layout: later ones may have dropped every token of it)."""
        return tuple(count > 0 for count in self.visual_counts)

    @property
    def tail(self) -> int:
        """The most text behind an image."""
        return max((tail for tail, count in zip(self.tails, self.visual_counts, strict=True) if count), default=0)

    def text_behind_image(self) -> Tensor:
        """Which of the last `tail` columns hold text behind the image: `[B, tail]`."""
        return torch.arange(self.tail, 0, -1, device=self.valid.device) <= self.behind[:, None]


def read_layout(input_ids: Tensor, attention_mask: Tensor | None, image_token_id: int, num_visual: int) -> Layout:
    """The layout of a prompt `[B, L]` whose image placeholders are expanded to `num_visual` tokens an image.

    Raises `ValueError` where the prompt cannot be pruned row by row: padding on the right or inside, more than one
    image in a row, or another number of placeholders than the model has visual tokens. This is the one place that
    reads token counts back to the host; it runs before the first layer.
    """
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if valid.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: shape {list(valid.shape)} is not that of input_ids {list(input_ids.shape)}; "
            "pass the 2-D mask of the tokenizer"
        )
    visual = (input_ids == image_token_id) & valid
    gaps = (valid[:, :-1] & ~valid[:, 1:]).sum(1) + (~valid[:, -1]).long()
    behind = (valid & (visual.long().cumsum(1) == visual.sum(1, keepdim=True)) & ~visual).sum(1)
    lengths, counts, broken, tails = torch.stack([valid.sum(1), visual.sum(1), gaps, behind]).tolist()
    for row, (count, gap) in enumerate(zip(counts, broken, strict=True)):
        if gap:
            raise ValueError(
                f"attention_mask: row {row} is padded on the right or inside; pad on the left (padding_side='left')"
            )
        if count not in (0, num_visual):
            raise ValueError(
                f"input_ids: row {row} holds {count} image placeholders, but an image of this model has {num_visual} "
                "visual tokens; give each row no image or one, with its placeholder expanded by the processor"
            )
    # visual columns first and in order; in a row without an image these are arbitrary and `present` is False
    order = visual.int().argsort(dim=1, descending=True, stable=True)[:, :num_visual]
    return Layout(
        valid=valid,
        columns=order,
        present=visual.gather(1, order),
        lengths=tuple(lengths),
        visual_counts=tuple(counts),
        behind=behind,
        tails=tuple(tails),
    )


def left_compact(keep: Tensor, width: int, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Indices `[B, width]` that move the kept tokens of each row, in order, to its right end, and their validity.

    `keep` is `[B, L]` bool and no row may keep more than `width`. Rows that keep fewer are filled on the left with
    dropped tokens marked invalid, which is ordinary left padding; the last column stays the last prompt token.
    `order` `[B, L]`, not negative, sorts the kept tokens; without it they stay as they are.
    """
    place = keep.int() if order is None else order.masked_fill(~keep, -1)
    index = place.argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return index, keep.gather(1, index)


def drop_visual(layout: Layout, keep: Tensor, retained: int, merged: int = 0) -> tuple[Tensor, Layout]:
    """Drop the visual tokens that `keep` `[B, V]` does not name, and make room for `merged` new ones behind the rest.

    Returns the gather index `[B, L']` into the columns followed by the merged tokens, `[B, L + merged]`, and the
    layout after it. Text always stays. No row may keep more than `retained` tokens; a row may keep fewer. A row
    whose image is gone, or that never had one, gets no merged tokens.
    """
    keep = keep & layout.present
    dropped = torch.zeros(layout.valid.shape, dtype=torch.int8, device=keep.device)
    # adding instead of assigning: tokens that left earlier share columns with others, and must not overwrite them
    dropped.scatter_add_(1, layout.columns, (layout.present & ~keep).to(torch.int8))
    stays = layout.valid & (dropped == 0)
    counts = tuple(min(count, retained) + (merged if count else 0) for count in layout.visual_counts)
    lengths = tuple(
        length - before + after
        for length, before, after in zip(layout.lengths, layout.visual_counts, counts, strict=True)
    )
    columns, order = layout.columns, None
    if merged:
        place = torch.arange(layout.width, device=keep.device).expand_as(stays)
        shown = layout.present.any(1, keepdim=True).expand(-1, merged)
        last = columns.masked_fill(~layout.present, 0).amax(1, keepdim=True).expand(-1, merged)
        order = torch.cat([2 * place, 2 * last + 1], dim=1)  # behind the image's last token, before the next one
        stays, keep = torch.cat([stays, shown], dim=1), torch.cat([keep, shown], dim=1)
        new = torch.arange(layout.width, layout.width + merged, device=keep.device)
        columns = torch.cat([columns, new.expand(len(columns), -1)], dim=1)
    index, valid = left_compact(stays, max(lengths), order)
    place = torch.arange(index.shape[1], device=index.device).expand_as(index)
    moved = torch.zeros(stays.shape, dtype=torch.long, device=index.device).scatter_(1, index, place)
    return index, Layout(
        valid=valid,
        columns=moved.gather(1, columns),
        present=keep,
        lengths=lengths,
        visual_counts=counts,
        behind=layout.behind,
        tails=layout.tails,
    )


def shorten_prompt(input_ids: Tensor, layout: Layout, retained: int, padding_id: int) -> tuple[Tensor, Tensor]:
    """The prompt with `retained` placeholders an image: `input_ids` and `attention_mask`, both `[B, L']`.

    A placeholder carries no content, so which of them go does not matter; the features decide what is seen.
    """
    rank = torch.arange(layout.columns.shape[1], device=input_ids.device)
    index, short = drop_visual(layout, (rank < retained).expand_as(layout.present), retained)
    ids = input_ids.gather(1, index).masked_fill(~short.valid, padding_id)
    return ids, short.valid.long()
