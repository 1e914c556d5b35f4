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

    `valid` `[B, L]` is False on padding; `columns` `[B, N]` says in which column each visual token of the image
    stands, and `present` `[B, N]` whether it is still there (all False in a row without an image). `lengths` are the
    valid tokens of each row, known on the host, so that no later step has to wait for the device.
    """

    valid: Tensor
    columns: Tensor
    present: Tensor
    lengths: tuple[int, ...]
    visual_counts: tuple[int, ...]

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
        """Which rows show an image."""
        return tuple(count > 0 for count in self.visual_counts)


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
    lengths, counts, broken = torch.stack([valid.sum(1), visual.sum(1), gaps]).tolist()
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
    )


def left_compact(keep: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Indices `[B, width]` that move the kept tokens of each row, in order, to its right end, and their validity.

    `keep` is `[B, L]` bool and no row may keep more than `width`. Rows that keep fewer are filled on the left with
    dropped tokens marked invalid, which is ordinary left padding; the last column stays the last prompt token.
    """
    index = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return index, keep.gather(1, index)


def drop_visual(layout: Layout, keep: Tensor, retained: int) -> tuple[Tensor, Layout]:
    """Drop the visual tokens that `keep` `[B, N]` does not name; text always stays.

    Returns the gather index `[B, L']` and the layout after it. No row may keep more than `retained` tokens; a row
    may keep fewer.
    """
    keep = keep & layout.present
    dropped = torch.zeros(layout.valid.shape, dtype=torch.int8, device=keep.device)
    # adding instead of assigning: tokens that left earlier share columns with others, and must not overwrite them
    dropped.scatter_add_(1, layout.columns, (layout.present & ~keep).to(torch.int8))
    counts = tuple(min(count, retained) for count in layout.visual_counts)
    lengths = tuple(
        length - before + after
        for length, before, after in zip(layout.lengths, layout.visual_counts, counts, strict=True)
    )
    index, valid = left_compact(layout.valid & (dropped == 0), max(lengths))
    place = torch.arange(index.shape[1], device=index.device).expand_as(index)
    moved = torch.zeros(layout.valid.shape, dtype=torch.long, device=index.device).scatter_(1, index, place)
    return index, Layout(
        valid=valid,
        columns=moved.gather(1, layout.columns),
        present=keep,
        lengths=lengths,
        visual_counts=counts,
    )


def shorten_prompt(input_ids: Tensor, layout: Layout, retained: int, padding_id: int) -> tuple[Tensor, Tensor]:
    """The prompt with `retained` placeholders an image: `input_ids` and `attention_mask`, both `[B, L']`.

    A placeholder carries no content, so which of them go does not matter; the features decide what is seen.
    """
    rank = torch.arange(layout.columns.shape[1], device=input_ids.device)
    index, short = drop_visual(layout, (rank < retained).expand_as(layout.present), retained)
    ids = input_ids.gather(1, index).masked_fill(~short.valid, padding_id)
    return ids, short.valid.long()
