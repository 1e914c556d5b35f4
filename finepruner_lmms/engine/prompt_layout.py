"""Where the tokens of a batch stand: reading a left-padded prompt, and moving the kept tokens of each row together.

Everything here is plain tensor arithmetic on token positions; nothing knows transformers.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.errors import FieldError


@dataclass(frozen=True)
class ImageGroup:
    """The images of a batch that have equally many visual tokens, in the order of the prompts: I of them.

    `num_visual_tokens` is N of each and `grid` what they fill; `number` says which images of the batch these are;
    `rows` (and `index` `[I]`, on the device) in which row each stands; `places` `[I, V']` which of the V of its row are
    its tokens, merged ones included. `counts` are the tokens that each has left, at most, and `ends` tells whose last
    token is the last of the prompt: both are known on the host. What is told of images is told in rows `told` `[I]` out
    of `told_of`: those of the batch, or one per image in the order of the prompts where a row shows several.
    """

    num_visual_tokens: int
    grid: tuple[int, int, int] | None
    number: tuple[int, ...]
    rows: tuple[int, ...]
    index: Tensor
    places: Tensor
    counts: tuple[int, ...]
    ends: tuple[bool, ...]
    told: Tensor
    told_of: int

    def of_rows(self, values: Tensor) -> Tensor:
        """What `values` `[B, ...]` says of the row of each image: `[I, ...]`."""
        return values.index_select(0, self.index)

    def cut(self, values: Tensor) -> Tensor:
        """What `values` `[B, ..., V]` says of the tokens of each image: `[I, ..., V']`."""
        own = self.of_rows(values)
        middle = own.ndim - 2
        places = self.places.view(len(self.places), *[1] * middle, -1)
        return own.gather(-1, places.expand(*own.shape[:-1], -1))


@dataclass(frozen=True)
class Layout:
    """The tokens of a batch at one depth.

    `valid` `[B, L]` is False on padding; `columns` `[B, V]` says in which column each visual token of the image
    stands, and `present` `[B, V]` whether it is still there (all False in a row without an image). V is the most
    placeholders of a row and grows by the tokens that a method merges; they stand in the order of their numbers.
    Without `groups` every row with an image shows one, whose N = V tokens may all be dropped; with them, each image
    is told apart, and what belongs to none of them (newlines and separators) stays. `text_after` `[B]` counts
    the text after the image, `tails` too, and `tail` is the largest such count among rows with an image. `lengths`
    (the valid tokens of each row), `visual_counts` and `tails` are known on the host, so that no later step has to
    wait for the device. They may be upper bounds, and may name each kind of row once (`engine.fixed.shape`).
    """

    valid: Tensor
    columns: Tensor
    present: Tensor
    lengths: tuple[int, ...]
    visual_counts: tuple[int, ...]
    text_after: Tensor
    tails: tuple[int, ...]
    groups: tuple[ImageGroup, ...] = ()

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
    def shows_several(self) -> bool:
        """Whether any row shows more than one image."""
        rows = [row for group in self.groups for row in group.rows]
        return len(set(rows)) < len(rows)

    @property
    def tail(self) -> int:
        """The most text after an image."""
        return max((tail for tail, count in zip(self.tails, self.visual_counts, strict=True) if count), default=0)

    @property
    def ends_with_image(self) -> tuple[bool, ...]:
        """In which rows the prompt ends with the image, so that the next token is read from a visual one."""
        return tuple(count > 0 and tail == 0 for count, tail in zip(self.visual_counts, self.tails, strict=True))

    def required(self) -> Tensor | None:
        """The visual tokens that no method may drop, `[B, V]`: those in the last column, whose logits are read.

        None where every row ends with text, which is known without asking the device.
        """
        return self.present & (self.columns == self.width - 1) if any(self.ends_with_image) else None

    def text_after_image(self) -> Tensor:
        """Which of the last `tail` columns hold text after the image: `[B, tail]`."""
        return torch.arange(self.tail, 0, -1, device=self.valid.device) <= self.text_after[:, None]


def find_padding(input_ids: Tensor, padding_id: int | None, end_ids: Collection[int] = ()) -> Tensor:
    """The mask `[B, L]` of a prompt that came without one, by transformers' own rule: what is `padding_id` is padding.

    Raises `FieldError` where that cannot be told: rows of a batch whose padding id is not known, or a padding id that
    the prompt holds and that also ends answers (`end_ids`), so that it may be meant.
    """
    missing = "missing, and which tokens are padding cannot be told"
    fix = "pass the tokenizer's attention_mask"
    if padding_id is None:
        if len(input_ids) > 1:
            raise FieldError("attention_mask", f"{missing}: the model names no pad_token_id", fix=fix)
        return torch.ones_like(input_ids)
    mask = (input_ids != padding_id).long()
    if padding_id in end_ids and not bool(mask.all()):
        raise FieldError(
            "attention_mask", f"{missing}: the prompt holds {padding_id}, which pads and ends answers", fix=fix
        )
    return mask


@dataclass(frozen=True)
class Placeholders:
    """Where the placeholders of a batch stand, `[B, L]`, and what the host knows of each row."""

    valid: Tensor
    visual: Tensor
    text_after: Tensor
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    tails: tuple[int, ...]

    @classmethod
    def find(cls, input_ids: Tensor, attention_mask: Tensor | None, placeholders: Collection[int]) -> Placeholders:
        """Those of a prompt `[B, L]`. `FieldError` where it is padded on the right or inside.

        This is the one place that reads token counts back to the host; it runs before the first layer.
        """
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if valid.shape != input_ids.shape:
            raise FieldError(
                "attention_mask",
                f"shape {list(valid.shape)} is not that of input_ids {list(input_ids.shape)}",
                fix="pass the 2-D mask of the tokenizer",
            )
        visual = valid & functools.reduce(torch.logical_or, [input_ids == one for one in placeholders])
        gaps = (valid[:, :-1] & ~valid[:, 1:]).sum(1) + (~valid[:, -1]).long()
        text_after = (valid & (visual.long().cumsum(1) == visual.sum(1, keepdim=True)) & ~visual).sum(1)
        lengths, counts, broken, tails = torch.stack([valid.sum(1), visual.sum(1), gaps, text_after]).tolist()
        for row, gap in enumerate(broken):
            if gap:
                raise FieldError(
                    "attention_mask",
                    f"row {row} is padded on the right or inside",
                    fix="pad on the left (padding_side='left'), and pass the tokenizer's attention_mask",
                )
        return cls(valid, visual, text_after, tuple(lengths), tuple(counts), tuple(tails))

    def layout(self, most: int, groups: tuple[ImageGroup, ...] = ()) -> Layout:
        """The layout of rows with at most so many placeholders."""
        # visual columns first and in order; in a row without an image these are arbitrary and `present` is False
        order = self.visual.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return Layout(
            valid=self.valid,
            columns=order,
            present=self.visual.gather(1, order),
            lengths=self.lengths,
            visual_counts=self.counts,
            text_after=self.text_after,
            tails=self.tails,
            groups=groups,
        )


def read_layout(input_ids: Tensor, attention_mask: Tensor | None, image_token_id: int, num_visual: int) -> Layout:
    """The layout of a prompt `[B, L]` whose rows show an image of `num_visual` tokens each, or none.

    Raises `FieldError` where the prompt cannot be pruned row by row: padding on the right or inside, more than one
    image in a row, or another number of placeholders than the model has visual tokens.
    """
    found = Placeholders.find(input_ids, attention_mask, [image_token_id])
    for row, count in enumerate(found.counts):
        if count not in (0, num_visual):
            raise FieldError(
                "input_ids",
                f"row {row} holds {count} image placeholders, but an image of this model has {num_visual} visual "
                "tokens",
                fix="expand the placeholder of each image with the processor",
            )
    return found.layout(num_visual)


def left_compact(keep: Tensor, width: int, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Indices `[B, width]` that move the kept tokens of each row, in order, to its right end, and their validity.

    `keep` is `[B, L]` bool and no row may keep more than `width`. Rows that keep fewer are filled on the left with
    dropped tokens marked invalid, which is ordinary left padding; the last column stays the last prompt token.
    `order` `[B, L]`, not negative, sorts the kept tokens; without it they stay as they are.
    """
    place = keep.int() if order is None else order.masked_fill(~keep, -1)
    index = place.argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return index, keep.gather(1, index)


def counts_after_drop(
    lengths: tuple[int, ...], visual: tuple[int, ...], tails: tuple[int, ...], retained: int, merged: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens and visual tokens of each row after a drop, at most, from those before it and the text after the image."""
    left = tuple(
        max(min(count, retained), int(tail == 0)) + merged if count else 0
        for count, tail in zip(visual, tails, strict=True)
    )
    after = tuple(length - count + now for length, count, now in zip(lengths, visual, left, strict=True))
    return after, left


@dataclass(frozen=True)
class Made:
    """New tokens of a batch, which follow the V of their rows: `[B, M]` each.

    Their `order` is that of `made_after` and `made_before`; where one is not `valid`, there is none.
    """

    order: Tensor
    valid: Tensor


def made_after(columns: Tensor, present: Tensor, ends: Tensor | None, count: int) -> Made:
    """`count` new tokens after the last of the tokens that stand at `columns` `[B, V]`; but before it where it `ends`
    `[B, 1]` the prompt. None where no token is `present` `[B, V]`."""
    last = columns.masked_fill(~present, 0).amax(1, keepdim=True).expand(-1, count)
    side = 1 if ends is None else 1 - 2 * ends.long()
    return Made(2 * last + side, present.any(1, keepdim=True).expand(-1, count))


def drop_visual(layout: Layout, keep: Tensor, retained: int, merged: int = 0) -> tuple[Tensor, Layout]:
    """Drop the visual tokens that `keep` `[B, V]` does not name, and make room for `merged` new ones after the rest.

    For a layout without groups. Returns the gather index `[B, L']` into the columns followed by the merged tokens,
    `[B, L + merged]`, and the layout after it. Text always stays. No row may keep more than `retained` tokens; a row
    may keep fewer. A row that ends with its image keeps one at least: `Layout.required`, which `keep` has to name and
    which stays the last. A row whose image is gone, or that never had one, gets no merged tokens.
    """
    keep, made = keep & layout.present, None
    if merged:
        required = layout.required()
        ends = None if required is None else required.any(1, keepdim=True)
        made = made_after(layout.columns, layout.present, ends, merged)
    lengths, counts = counts_after_drop(layout.lengths, layout.visual_counts, layout.tails, retained, merged)
    return compact(layout, keep, lengths, counts, made)


def compact(
    layout: Layout, keep: Tensor, lengths: tuple[int, ...], counts: tuple[int, ...], made: Made | None = None
) -> tuple[Tensor, Layout]:
    """The gather index `[B, L']` into the columns and `made`, `[B, L + M]`, and the layout that it leads to.

    Visual tokens that `keep` `[B, V]` does not name are dropped. No row may be longer than `lengths` says; `counts`
    are its visual tokens.
    """
    dropped = torch.zeros(layout.valid.shape, dtype=torch.int8, device=keep.device)
    # adding instead of assigning: tokens that left earlier share columns with others, and must not overwrite them
    dropped.scatter_add_(1, layout.columns, (layout.present & ~keep).to(torch.int8))
    stays = layout.valid & (dropped == 0)
    columns, order = layout.columns, None
    if made is not None:
        place = torch.arange(layout.width, device=keep.device).expand_as(stays)
        order = torch.cat([2 * place, made.order], dim=1)
        stays, keep = torch.cat([stays, made.valid], dim=1), torch.cat([keep, made.valid], dim=1)
        new = torch.arange(layout.width, stays.shape[1], device=keep.device)
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
        text_after=layout.text_after,
        tails=layout.tails,
    )


def shorten_prompt(input_ids: Tensor, layout: Layout, retained: int, padding_id: int) -> tuple[Tensor, Tensor]:
    """The prompt with `retained` placeholders per image: `input_ids` and `attention_mask`, both `[B, L']`.

    A placeholder carries no content, so which of them go does not matter; the features decide what is seen.
    """
    rank = torch.arange(layout.columns.shape[1], device=input_ids.device)
    index, short = drop_visual(layout, (rank < retained).expand_as(layout.present), retained)
    ids = input_ids.gather(1, index).masked_fill(~short.valid, padding_id)
    return ids, short.valid.long()
