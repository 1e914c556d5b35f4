"""Dropping visual tokens before a decoder layer: the method chooses, the kept tokens of each row are gathered.

Nothing here knows how the layers are run: the hooks of `attach`, the fixed buffers of `engine.fixed` and whatever else
walks through a decoder call `Dropping.drop` where a stage begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.budget import keeps_all
from finepruner_lmms.engine.attention_rows import Rows
from finepruner_lmms.engine.by_image import (
    Chosen,
    Gathering,
    ImageRows,
    gather_images,
    only_what_is_left,
    remember_images,
    remember_merged,
)
from finepruner_lmms.engine.contract import check_selection, check_stages
from finepruner_lmms.engine.entrance import Entrance
from finepruner_lmms.engine.families.fits import check_positions
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.image_drops import plan_drops
from finepruner_lmms.engine.prompt_layout import Layout, drop_visual
from finepruner_lmms.engine.prompt_state import PromptState, View, on_device
from finepruner_lmms.engine.trace import Trace, guides_of
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.ops.selection import take, with_required
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection


@dataclass(frozen=True)
class _Before:
    """A prompt ahead of a drop, on the device of the layer that comes next."""

    layout: Layout
    positions: Tensor  # [B, L] or [3, B, L]
    shift: Tensor | int


class Dropping:
    """The stages of `pruner` in `model`, and what happens at each. What was chosen is recorded in `trace`.

    `num_visual_tokens` is the number of placeholders per image where it is not the model's own; `entrance` what a
    method before the language model has left. Raises `FieldError` for a budget out of reach and for a method that
    breaks the contract of `pruners.base`.
    """

    def __init__(
        self,
        model: Any,
        pruner: Pruner,
        trace: Trace,
        num_visual_tokens: int | None = None,
        entrance: Entrance | None = None,
    ) -> None:
        self.family, self.config = family_of(model), model.config
        self.decoder: Any = self.family.decoder(model)
        self.geometry = Geometry.of(model.config)
        if num_visual_tokens is not None:
            self.geometry = replace(self.geometry, num_visual_tokens=num_visual_tokens)
        self.pruner, self.trace, self.entrance = pruner, trace, entrance
        pruner.check_heads(self.geometry.num_heads)
        check_positions(self.family, pruner)
        self.varies = self.family.num_visual_tokens(model.config) is None
        """Whether images differ in their number of visual tokens."""
        self.stages: tuple[Stage, ...] = ()
        """Where tokens are dropped of an image of `geometry.num_visual_tokens`, inside the decoder."""
        if entrance is None and not self.varies:
            self.stages = self.stages_of(self.geometry.num_visual_tokens)

    @property
    def prunes(self) -> bool:
        """Whether any image could lose tokens."""
        if self.varies and self.entrance is None:
            return not keeps_all(self.pruner.budget, self.geometry.num_visual_tokens)
        return bool(self.stages) or self.entrance is not None

    def start(self, layout: Layout, rows: int) -> PromptState:
        """The state of a prompt that was read, with the drops that it will see; starts the trace anew."""
        counts = [group.num_visual_tokens for group in layout.groups]
        self.trace.start(self.geometry.num_layers, self.geometry.num_visual_tokens, layout.has_image)
        if not any(layout.has_image):
            return PromptState(None, rows)
        if not layout.groups:
            layers = tuple(stage.layer for stage in self.stages)
            return PromptState(layout if layers else None, rows, layers=layers, watched=self.watched(layers))
        self.trace.tell_images(layout)
        stages = {count: self.stages_of(count) for count in set(counts)}
        drops = plan_drops(layout, [stages[count] for count in counts])
        watched = self.watched(drops)
        return PromptState(layout if drops else None, rows, layers=tuple(drops), drops=drops, watched=watched)

    def watched(self, drops: Iterable[int]) -> frozenset[int]:
        """The layers whose last row is read at one of these drops, but for the layer just before it."""
        return frozenset(
            layer for drop in drops if drop for layer in self.inside().reads_layers(drop) if layer < drop - 1
        )

    def stages_of(self, num_visual_tokens: int) -> tuple[Stage, ...]:
        """Where tokens are dropped of an image of so many, the decoder's entrance included."""
        if self.varies and keeps_all(self.pruner.budget, num_visual_tokens):
            return ()
        found, left = [], num_visual_tokens
        inside: Pruner | None
        before, inside = self.pruner.parts(num_visual_tokens)
        if self.entrance is None:
            if before is not None and before.retained(num_visual_tokens) < num_visual_tokens:
                inside = self.pruner  # nobody has dropped what it drops before the decoder: it is refused
        elif before is not None and (stage := self.entrance.stage(num_visual_tokens)) is not None:
            found.append(stage)
            left = stage.retained + stage.merged
        if inside is not None:
            own = tuple(inside.stages(self.geometry.num_layers, left))
            check_stages(inside, own, self.geometry.num_layers)
            found += own
        return tuple(found)

    def inside(self) -> DecoderPruner:
        """The method that chooses by what the decoder's layers say."""
        _, inside = self.pruner.halves
        assert inside is not None
        return inside

    @property
    def renumbers(self) -> bool:
        """Whether tokens are numbered anew after a drop inside; where they have places in a grid, they keep these."""
        return self.inside().renumber_positions and not self.family.grid_positions

    # -- a drop -------------------------------------------------------------------------------------------------------

    def drop(
        self,
        state: PromptState,
        layer: int,
        hidden: Tensor,
        cached: Callable[[int], tuple[Tensor, Tensor]],
        positions: Tensor,
    ) -> Tensor:
        """Choose and gather: `hidden` `[B, L, D]` → `[B, L', D]`, and `state.views` gets the layers from here on.

        `cached(l)` are keys and values `[B, KV heads, L, head_dim]` of the earlier layer `l`, the keys rotated, whose
        input `state.inputs` holds for the layer before and `state.asking` for others; `positions` `[B or 1, L]`, or
        `[3, B, L]`, are those of the prompt, which only the first drop reads.
        """
        before = self._before(state, layer, positions, hidden)
        with for_choosing(hidden.device):
            rows = Rows(self.decoder, state, layer, hidden, cached, before.layout, before.positions)
            if before.layout.groups:
                moved = self._choose_by_image(state, layer, rows)
            else:
                moved = self._choose(state, self._stage(layer), rows)
        del state.inputs[layer]
        return self._gather(state, layer, hidden, before, moved, self.renumbers, self.inside().fills_budget)

    def enter(self, state: PromptState, embeds: Tensor, positions: Tensor) -> Tensor:
        """Drop at the decoder's entrance: `embeds` `[B, L, D]` → `[B, L', D]`; `state.views[0]` and the layout follow.

        Positions `[B, L]` are numbered anew, as those of a prompt that never had the dropped tokens.
        """
        assert self.entrance is not None
        before, drop = self._before(state, 0, positions, embeds), state.drops[0]
        chosen = [
            None if stage is None else self.entrance.chosen(group)
            for group, stage in zip(before.layout.groups, drop.stages, strict=True)
        ]
        embeds = embeds.clone()
        for group, stage in zip(before.layout.groups, drop.stages, strict=True):
            if stage is not None:
                self.entrance.put_changed(group, before.layout.columns, embeds)
        remember_merged(self.trace, 0, before.layout, chosen)
        moved = gather_images(before.layout, drop, chosen, embeds)
        hidden = self._gather(state, 0, embeds, before, moved, not self.family.grid_positions, True)
        state.layout = only_what_is_left(moved.layout, drop, chosen)
        state.views[0].layout = state.layout
        return hidden

    def _before(self, state: PromptState, layer: int, positions: Tensor, hidden: Tensor) -> _Before:
        assert state.layout is not None
        device = hidden.device
        earlier = [start for start in sorted(state.views) if start < layer]
        if not earlier:
            return _Before(on_device(state.layout, device), _of_rows(positions, len(hidden)), 0)
        view = state.views[earlier[-1]]
        # behind the entrance the decoder itself counts from the positions that its prompt was given there
        shift = 0 if earlier[-1] == 0 else view.shift
        shift = shift.to(device) if isinstance(shift, Tensor) else shift
        return _Before(on_device(view.layout, device), view.positions.to(device), shift)

    def _stage(self, layer: int) -> Stage:
        return next(stage for stage in self.stages if stage.layer == layer)

    def _choose(self, state: PromptState, stage: Stage, rows: Rows) -> Gathering:
        """One image per row, all of one size."""
        pruner, layout, hidden = self.inside(), rows.layout, rows.hidden
        context = self.context(stage, rows).remember_in(state.memory)
        chosen, keep = self._ask(pruner, stage, context, hidden)
        index, after = drop_visual(layout, keep, stage.retained, stage.merged)
        self._remember(stage.layer, chosen)
        if not stage.merged:
            return Gathering(index, after)
        assert chosen.merged is not None and chosen.merged_from is not None
        source = layout.columns.gather(1, chosen.merged_from.clamp(0, layout.columns.shape[1] - 1))
        return Gathering(index, after, chosen.merged.to(hidden.dtype), source)

    def _choose_by_image(self, state: PromptState, layer: int, rows: Rows) -> Gathering:
        """Each group of images by itself."""
        pruner, drop, shared = self.inside(), state.drops[layer], ImageRows(rows)
        found: list[Selection | None] = []
        chosen: list[Chosen | None] = []
        for place, (group, stage) in enumerate(zip(rows.layout.groups, drop.stages, strict=True)):
            if stage is None:
                found.append(None)
                chosen.append(None)
                continue
            memory = state.memory.setdefault(f"images {place}", {})
            context = shared.context(group, layer, max(group.counts), memory)
            selection, keep = self._ask(pruner, stage, context, rows.hidden)
            found.append(selection)
            chosen.append(Chosen(keep, selection.merged, selection.merged_from, sources=selection.sources))
        remember_images(self.trace, layer, rows.layout, found)
        remember_merged(self.trace, layer, rows.layout, chosen)
        return gather_images(rows.layout, drop, chosen, rows.hidden)

    def _ask(
        self, pruner: DecoderPruner, stage: Stage, context: DecoderContext, hidden: Tensor
    ) -> tuple[Selection, Tensor]:
        """What the method chooses, and which tokens stay then, `[B, V]`."""
        chosen = pruner.select(context.at(self.geometry.num_layers, stage.merged), stage.retained)
        check_selection(pruner, chosen, stage, context.present, context.required, hidden, self.trace)
        if chosen.scores is not None:
            self.trace.watch(f"token scores of {pruner.name!r} at layer {stage.layer}", chosen.scores)
        if context.required is None:
            return chosen, chosen.keep
        return chosen, with_required(chosen.keep, context.required, stage.retained, chosen.scores)

    def _gather(
        self,
        state: PromptState,
        layer: int,
        hidden: Tensor,
        before: _Before,
        moved: Gathering,
        renumber: bool,
        fills_budget: bool,
    ) -> Tensor:
        """Move the tokens, their positions and their origins; `state.views` gets the layers from here on."""
        old, origin, shift, layout, index = before.positions, state.origin, before.shift, moved.layout, moved.index
        if moved.tokens is not None and moved.source is not None:
            hidden = torch.cat([hidden, moved.tokens], dim=1)
            old = torch.cat([old, old.gather(-1, _of_rows(moved.source, *old.shape[:-1]))], dim=-1)
            if origin is not None:
                origin = torch.cat([origin, origin.gather(1, moved.source)], dim=1)
        if renumber:
            new = (layout.valid.long().cumsum(1) - 1).clamp(min=0)
            width = before.layout.width
            shift = old[:, width - 1 : width] - new[:, -1:] + shift
        else:
            new = old.gather(-1, _of_rows(index, *old.shape[:-1]))
        if origin is not None:
            state.origin = origin.gather(1, index)
        # a data-dependent method may keep fewer than `retained`, which the host does not know: then a mask is needed
        exact = bool(not layout.padded and fills_budget)
        state.views[layer] = View(layout, new, None if exact else layout.valid, layout.width, shift)
        self.trace.keep_masks[layer] = layout.present
        return take(hidden, index)

    # -- what is told and remembered ----------------------------------------------------------------------------------

    def _remember(self, layer: int, chosen: Selection) -> None:
        if chosen.heads is not None and chosen.head_scores is not None:
            self.trace.chosen_heads[layer] = chosen.heads, chosen.head_scores
        if (guides := guides_of(chosen)) is not None:
            self.trace.guides[layer] = guides
        if chosen.sources is not None:
            self.trace.merge_masks[layer] = chosen.sources
        if chosen.details is not None:
            self.trace.details[layer] = chosen.details

    def context(self, stage: Stage, rows: Rows) -> DecoderContext:
        """What the method may look at; everything but the layout is computed when it is read."""
        return DecoderContext(
            stage.layer,
            rows.last,
            rows.layout.present,
            self.entering(stage),
            rows.layout.required(),
            rows.text,
            rows.last_in,
            next_attention=rows.last_of_next,
            text_present=lambda: rows.prompt.text_after_image(),
            prefix_lengths=lambda: rows.prompt.valid.sum(1) - rows.prompt.text_after - rows.prompt.present.sum(1),
            hidden=lambda: take(rows.hidden, rows.layout.columns),
            values=rows.visual_values,
            text_output=rows.text_output,
            rotation=rows.rotation,
            visual_embeds=lambda: take(rows.embeds, rows.prompt.columns),
            text_embeds=lambda: rows.embeds[:, rows.embeds.shape[1] - rows.prompt.tail :],
        )

    def entering(self, stage: Stage) -> int:
        """The visual tokens of an image just before a drop, by the schedule."""
        earlier = [one.retained + one.merged for one in self.stages if one.layer < stage.layer]
        return earlier[-1] if earlier else self.geometry.num_visual_tokens


def _of_rows(values: Tensor, *rows: int) -> Tensor:
    """`values` `[..., 1 or B, L]` as `[..., B, L]`, or `[B, L]` as `[3, B, L]`."""
    shape = (*values.shape[:-2], rows[0]) if len(rows) == 1 else rows
    return values.expand(*shape, values.shape[-1])
