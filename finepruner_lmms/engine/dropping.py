"""Dropping visual tokens before a decoder layer: the method chooses, the kept tokens of each row are gathered.

Nothing here knows how the layers are run: the hooks of `attach`, the fixed buffers of `engine.fixed` and whatever else
walks through a decoder call `Dropping.drop` where a stage begins.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.attention_rows import Rows
from finepruner_lmms.engine.contract import check_selection, check_stages
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.prompt_layout import drop_visual
from finepruner_lmms.engine.prompt_state import PromptState, View, on_device
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.ops.selection import take, with_required
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext


class Dropping:
    """The stages of `pruner` in `model`, and what happens at each. What was chosen is recorded in `trace`.

    `num_visual_tokens` is the number of placeholders per image where it is not the model's own. Raises `FieldError`
    for a budget out of reach and for a method that breaks the contract of `pruners.base`.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        pruner: Pruner,
        trace: Trace,
        num_visual_tokens: int | None = None,
    ) -> None:
        self.decoder = model.model.language_model
        self.geometry = Geometry.of(model.config)
        if num_visual_tokens is not None:
            self.geometry = replace(self.geometry, num_visual_tokens=num_visual_tokens)
        self.pruner, self.trace = pruner, trace
        pruner.check_heads(self.geometry.num_heads)
        self.stages = tuple(pruner.stages(self.geometry.num_layers, self.geometry.num_visual_tokens))
        check_stages(pruner, self.stages, self.geometry.num_layers)

    def drop(self, state: PromptState, stage: Stage, hidden: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Choose and gather: `hidden` `[B, L, D]` → `[B, L', D]`, and `state.views` gets the layers from here on.

        `keys` `[B, KV heads, L, head_dim]` are the rotated keys of the layer before, whose input `state.inputs` holds;
        `positions` `[B or 1, L]` those of the prompt, which only the first drop reads.
        """
        assert state.layout is not None and isinstance(self.pruner, DecoderPruner)
        layer, device = stage.layer, hidden.device
        earlier = [view for start, view in sorted(state.views.items()) if start < layer]
        if earlier:
            before, old, shift = (
                on_device(earlier[-1].layout, device),
                earlier[-1].positions.to(device),
                earlier[-1].shift,
            )
        else:
            before, old, shift = on_device(state.layout, device), positions.expand(len(hidden), -1), 0
        shift = shift.to(device) if isinstance(shift, Tensor) else shift
        with for_choosing(device):
            rows = Rows(self.decoder, state, layer, hidden, keys, before, old)
            chosen = self.pruner.select(self.context(stage, rows).remember_in(state.memory), stage.retained)
            check_selection(self.pruner, chosen, stage, before, hidden, self.trace)
            if chosen.scores is not None:
                self.trace.watch(f"token scores of {self.pruner.name!r} at layer {layer}", chosen.scores)
            keep, required = chosen.keep, before.required()
            if required is not None:
                keep = with_required(keep, required, stage.retained, chosen.scores)
            index, layout = drop_visual(before, keep, stage.retained, stage.merged)
        if stage.merged:
            assert chosen.merged is not None and chosen.merged_from is not None
            hidden = torch.cat([hidden, chosen.merged.to(hidden.dtype)], dim=1)
            source = chosen.merged_from.clamp(0, before.columns.shape[1] - 1)
            old = torch.cat([old, old.gather(1, before.columns.gather(1, source))], dim=1)
        if self.pruner.renumber_positions:
            new = (layout.valid.long().cumsum(1) - 1).clamp(min=0)
            shift = old[:, before.width - 1 : before.width] - new[:, -1:] + shift
        else:
            new = old.gather(1, index)
        # a data-dependent method may keep fewer than `retained`, which the host does not know: then a mask is needed
        exact = bool(not layout.padded and self.pruner.fills_budget)
        state.views[layer] = View(layout, new, None if exact else layout.valid, layout.width, shift)
        self.trace.keep_masks[layer] = layout.present
        if chosen.heads is not None and chosen.head_scores is not None:
            self.trace.chosen_heads[layer] = chosen.heads, chosen.head_scores
        if chosen.details is not None:
            self.trace.details[layer] = chosen.details
        del state.inputs[layer]
        return take(hidden, index)

    def context(self, stage: Stage, rows: Rows) -> DecoderContext:
        """What the method may look at; everything but the layout is computed when it is read."""
        return DecoderContext(
            stage.layer,
            rows.last,
            rows.layout.present,
            self.entering(stage),
            rows.layout.required(),
            rows.text,
            next_attention=rows.last_of_next,
            text_present=lambda: rows.prompt.text_after_image(),
            prefix_lengths=lambda: rows.prompt.valid.sum(1) - rows.prompt.text_after - rows.prompt.present.sum(1),
            hidden=lambda: take(rows.hidden, rows.layout.columns),
            visual_embeds=lambda: take(rows.embeds, rows.prompt.columns),
            text_embeds=lambda: rows.embeds[:, rows.embeds.shape[1] - rows.prompt.tail :],
        )

    def entering(self, stage: Stage) -> int:
        """The visual tokens of an image just before a drop, by the schedule."""
        earlier = [one.retained + one.merged for one in self.stages if one.layer < stage.layer]
        return earlier[-1] if earlier else self.geometry.num_visual_tokens
