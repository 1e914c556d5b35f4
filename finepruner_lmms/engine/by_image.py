"""Choosing where images differ: rows of several images, images of several sizes, newlines that stay.

A method is asked once for all images of a batch that have equally many visual tokens; to it they look like the rows of
a batch with one image each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.attention_rows import Rows
from finepruner_lmms.engine.image_drops import LayerDrop
from finepruner_lmms.engine.prompt_layout import ImageGroup, Layout, Made, compact
from finepruner_lmms.engine.trace import Trace, guides_of
from finepruner_lmms.ops.selection import mask_to_index, take
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection


@dataclass(frozen=True)
class Chosen:
    """What a method chose of the images of a group: which of their tokens stay `[I, V']`, and the new ones.

    `merged` `[I, M, D]` take the place of the tokens `merged_from` `[I, M]`; the first `lead` of them stand before the
    image. `sources` `[I, V']` are the tokens that went into them.
    """

    keep: Tensor
    merged: Tensor | None = None
    merged_from: Tensor | None = None
    lead: int = 0
    sources: Tensor | None = None


@dataclass(frozen=True)
class Gathering:
    """How the tokens of a batch move: `index` `[B, L']` into the columns and the new tokens, and where they stand then.

    New tokens `tokens` `[B, M, D]` take positions (and deep features) of the columns `source` `[B, M]`.
    """

    index: Tensor
    layout: Layout
    tokens: Tensor | None = None
    source: Tensor | None = None


def gather_images(layout: Layout, drop: LayerDrop, chosen: Sequence[Chosen | None], hidden: Tensor) -> Gathering:
    """Put what was chosen of each group together. `hidden` `[B, L, D]` is what the new tokens stand beside."""
    keep = layout.present.clone()
    rows, visual = keep.shape
    tokens = source = None
    made = None
    if drop.made:
        tokens = hidden.new_zeros(rows, drop.made, hidden.shape[2])
        source = layout.columns.new_zeros(rows, drop.made)
        made = Made(source.clone(), keep.new_zeros(rows, drop.made))
    groups = []
    for group, choice, slots, counts in zip(layout.groups, chosen, drop.slots, drop.counts, strict=True):
        if choice is None:
            groups.append(group)
            continue
        row = group.index[:, None]
        keep[row, group.places] = choice.keep & keep[row, group.places]
        if slots is not None:
            assert choice.merged is not None and tokens is not None and source is not None and made is not None
            slots = slots.to(row.device)  # layers of one model may stand on several devices
            columns, present = group.cut(layout.columns), group.cut(layout.present)
            tokens[row, slots] = choice.merged.to(tokens.dtype)
            made.order[row, slots] = _order(group, columns, present, slots.shape[1], choice.lead)
            made.valid[row, slots] = present.any(1, keepdim=True).expand_as(slots)
            if choice.merged_from is not None:
                source[row, slots] = columns.gather(1, choice.merged_from.clamp(0, columns.shape[1] - 1))
            else:
                source[row, slots] = columns[:, :1].expand_as(slots)
            group = replace(group, places=torch.cat([group.places, visual + slots], dim=1))
        groups.append(replace(group, counts=counts))
    index, after = compact(layout, keep, drop.lengths, drop.visual, made)
    return Gathering(index, replace(after, groups=tuple(groups)), tokens, source)


def only_what_is_left(layout: Layout, drop: LayerDrop, chosen: Sequence[Chosen | None]) -> Layout:
    """`layout` after a drop at the entrance, whose groups are made of what is left alone: a method that chooses later
    sees images of that many tokens, the new ones among them."""
    groups = []
    for group, choice, stage in zip(layout.groups, chosen, drop.stages, strict=True):
        if choice is None or stage is None:
            groups.append(group)
            continue
        own = group.places[:, : choice.keep.shape[1]]
        new = group.places[:, choice.keep.shape[1] :]
        kept = own.gather(1, mask_to_index(choice.keep, stage.retained))
        places = torch.cat([new[:, : choice.lead], kept, new[:, choice.lead :]], dim=1)
        groups.append(replace(group, places=places))
    return replace(layout, groups=tuple(groups))


def _order(group: ImageGroup, columns: Tensor, present: Tensor, count: int, lead: int) -> Tensor:
    """Where new tokens stand, as `Made.order`: the first `lead` before their image, the others after it."""
    first = columns.masked_fill(~present, torch.iinfo(columns.dtype).max // 4).amin(1, keepdim=True)
    last = columns.masked_fill(~present, 0).amax(1, keepdim=True)
    # after the last token of the image; but before it where the prompt ends with it
    side = torch.stack([columns.new_full((), 1 - 2 * int(ends)) for ends in group.ends])[:, None]
    return torch.cat([(2 * first - 1).expand(-1, lead), (2 * last + side).expand(-1, count - lead)], dim=1)


class ImageRows:
    """What the methods of all groups read before one layer, computed once for the batch."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._last_in: dict[int, Tensor] = {}

    def last_in(self, layer: int) -> Tensor:
        """`Rows.last_in`."""
        if layer == self.rows.layer - 1:
            return self.last
        if layer not in self._last_in:
            self._last_in[layer] = self.rows.last_in(layer)
        return self._last_in[layer]

    @cached_property
    def last(self) -> Tensor:
        """`Rows.last`."""
        return self.rows.last()

    @cached_property
    def last_of_next(self) -> Tensor:
        """`Rows.last_of_next`."""
        return self.rows.last_of_next()

    @cached_property
    def hidden(self) -> Tensor:
        """`[B, V, D]`: the visual tokens."""
        return take(self.rows.hidden, self.rows.layout.columns)

    @cached_property
    def values(self) -> Tensor:
        """`Rows.visual_values`."""
        return self.rows.visual_values()

    @cached_property
    def text_output(self) -> Tensor:
        """`Rows.text_output`."""
        return self.rows.text_output()

    @cached_property
    def rotation(self) -> Tensor:
        """`Rows.rotation`."""
        return self.rows.rotation()

    @cached_property
    def text(self) -> list[tuple[slice, Tensor]]:
        """`Rows.text`, kept: every group reads it."""
        return list(self.rows.text())

    def context(self, group: ImageGroup, layer: int, count: int, memory: dict[str, Any]) -> DecoderContext:
        """What a method may look at of the images of a group: `DecoderContext`, an image in the place of a row."""
        rows, prompt = self.rows, self.rows.prompt
        before = next(one for one in prompt.groups if one.number == group.number and one.rows == group.rows)
        required = rows.layout.required()

        def first_column() -> Tensor:
            return before.cut(prompt.columns)[:, :1]

        return DecoderContext(
            layer,
            lambda: group.cut(self.last),
            group.cut(rows.layout.present),
            count,
            None if required is None else group.cut(required),
            lambda: ((part, group.cut(some)) for part, some in self.text),
            lambda layer: group.cut(self.last_in(layer)),
            next_attention=lambda: group.cut(self.last_of_next),
            text_present=lambda: group.of_rows(prompt.text_after_image()),
            prefix_lengths=lambda: (
                group.of_rows(prompt.valid.long().cumsum(1)).gather(1, first_column()).squeeze(1) - 1
            ),
            hidden=lambda: take(group.of_rows(self.hidden), group.places),
            values=lambda: group.cut(self.values.mT).mT,
            text_output=lambda: group.of_rows(self.text_output),
            rotation=lambda: group.cut(self.rotation),
            visual_embeds=lambda: take(group.of_rows(take(rows.embeds, prompt.columns)), before.places),
            text_embeds=lambda: group.of_rows(rows.embeds)[:, rows.embeds.shape[1] - prompt.tail :],
        ).remember_in(memory)


def remember_merged(trace: Trace, layer: int, layout: Layout, chosen: Sequence[Chosen | None]) -> None:
    """Note in `trace` which tokens of the rows went into new ones."""
    asked = [
        (group, one.sources)
        for group, one in zip(layout.groups, chosen, strict=True)
        if one is not None and one.sources is not None
    ]
    if not asked:
        return
    merged = torch.zeros_like(layout.present)
    for group, sources in asked:
        merged[group.index[:, None], group.places] = sources
    trace.merge_masks[layer] = merged


@dataclass(frozen=True)
class DetailsOfImages:
    """What a method says of its choice, where it was asked for several groups of images: by group, with their rows."""

    parts: tuple[tuple[tuple[int, ...], Any], ...]

    def of_rows(self, rows: slice) -> DetailsOfImages:
        """The same: the parts name their rows themselves."""
        return self


def remember_images(trace: Trace, layer: int, layout: Layout, found: Sequence[Selection | None]) -> None:
    """Note in `trace` which heads were chosen, with a row per row of the batch, and what else the method says.

    Where a row shows several images, heads, and what guided, have a row per image instead, in the order of the prompts.
    """
    rows, places = layout.present.shape
    asked = [(group, one) for group, one in zip(layout.groups, found, strict=True) if one is not None]
    chosen = every = None
    for group, one in asked:
        if one.heads is not None and one.head_scores is not None:
            if chosen is None or every is None:
                chosen = one.heads.new_full((group.told_of, one.heads.shape[1]), -1)
                every = one.head_scores.new_zeros(group.told_of, one.head_scores.shape[1])
            chosen[group.told], every[group.told] = one.heads, one.head_scores
    if chosen is not None and every is not None:
        trace.chosen_heads[layer] = chosen, every
    shown = [(group, guides) for group, one in asked if (guides := guides_of(one)) is not None]
    if shown:
        most = max(guides.shape[1] for _, guides in shown)
        every = shown[0][1].new_zeros(shown[0][0].told_of, most, places)
        for group, guides in shown:
            map_of = torch.arange(guides.shape[1], device=guides.device)[None, :, None]
            every[group.told[:, None, None], map_of, group.places[:, None, :]] = guides
        trace.guides[layer] = every
    told = [(group.rows, one.details) for group, one in asked if one.details is not None]
    if len(told) == 1 and told[0][0] == tuple(range(rows)):
        trace.details[layer] = told[0][1]
    elif told:
        trace.details[layer] = DetailsOfImages(tuple(told))
