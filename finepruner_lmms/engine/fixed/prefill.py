"""A prompt through the decoder layers, with the drops of a pruner, into the fixed caches of a `Decoding`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.masking_utils import create_causal_mask

from finepruner_lmms.engine.dropping import Dropping
from finepruner_lmms.engine.fixed.decoding import UNSEEN, Decoding
from finepruner_lmms.engine.fixed.layers import normed, through
from finepruner_lmms.engine.fixed.shape import Shape, round_up
from finepruner_lmms.engine.prompt_state import LastToken, PromptState
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.pruners.base import Pruner


class Prefill:
    """The prompts of one shape under one pruner.

    `run` reads `ids` and `valid` `[B, L]` and `features` `[B, visual, D]`, the visual tokens of each row (in `storage`,
    flat memory that others may share), and leaves the first token in `decoding` and what was chosen in `trace`.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        pruner: Pruner,
        shape: Shape,
        decoding: Decoding,
        storage: Tensor,
    ) -> None:
        self.shape, self.decoding = shape, decoding
        self.decoder = model.model.language_model
        self.image_token_id = model.config.image_token_id
        self.trace = Trace()
        self._dropping = Dropping(model, pruner, self.trace, shape.visual or None)
        device, width = model.lm_head.weight.device, model.config.text_config.hidden_size
        self.ids = torch.zeros(shape.rows, shape.length, dtype=torch.long, device=device)
        self.valid = torch.zeros(shape.rows, shape.length, dtype=torch.bool, device=device)
        size = shape.rows * shape.visual * width
        self.features = storage[:size].view(shape.rows, shape.visual, width)

    def run(self) -> None:
        """Write the prompts into the caches."""
        geometry = self._dropping.geometry
        visual = (self.ids == self.image_token_id) & self.valid
        layout = self.shape.layout(self.valid, visual)
        hidden = self.decoder.embed_tokens(self.ids.masked_fill(visual, 0))
        if self.shape.visual:
            place = layout.columns[..., None].expand(-1, -1, hidden.shape[2])
            shown = torch.where(layout.present[..., None], self.features, hidden.gather(1, place))
            hidden = hidden.scatter(1, place, shown)
        # rows are told apart by who calls; the trace of a recording is read again and again
        self.trace.start(geometry.num_layers, geometry.num_visual_tokens, (bool(self.shape.visual),) * self.shape.rows)
        self.trace.expected.clear()
        stages = {stage.layer: stage for stage in self._dropping.stages} if self.shape.visual else {}
        state = PromptState(
            layout if stages else None,
            len(self.ids),
            embeds=hidden if stages else None,
            watched=self._dropping.watched(stages),
        )
        self.decoding.write_prompt()
        positions = (self.valid.long().cumsum(1) - 1).clamp(min=0)
        seen: list[tuple[Tensor | None, int, Tensor | int]] = []
        valid, here = self.valid if self.shape.padded else None, positions
        shift: Tensor | int = 0
        for index, layer in enumerate(self.decoder.layers):
            if (stage := stages.get(index)) is not None:
                hidden = self._dropping.drop(state, index, hidden, self.decoding.cache.of_prompt, positions)
                view = state.views[index]
                valid, shift, here = view.valid, view.shift, view.positions
            if index == 0 or stage is not None:
                seen.append((valid, hidden.shape[1], shift))
                arguments = self._arguments(hidden, valid, here)
            if index + 1 in stages:
                # of the layer before a drop, what its attention gets: the rows that methods may ask for
                asking = normed(layer.input_layernorm, hidden[:, -max(self.shape.tail, 1) :])
                state.inputs[index + 1] = (asking, layer.self_attn, arguments["position_embeddings"])
            if index in state.watched:
                asking = normed(layer.input_layernorm, hidden[:, -1:])
                state.asking[index] = LastToken.of(asking, layer.self_attn, arguments["position_embeddings"])
            hidden = through(layer, hidden, arguments)
        self.decoding.begin(hidden[:, -1:], self.valid, seen)

    def _arguments(self, hidden: Tensor, valid: Tensor | None, positions: Tensor) -> dict[str, Any]:
        """The arguments of the layers from one drop to the next."""
        # without positions: where a drop has left gaps in them, they would be taken for several prompts in one row
        mask = create_causal_mask(self.decoder.config, hidden, valid, None, None, allow_is_causal_skip=valid is None)
        return {
            "attention_mask": None if mask is None else _additive(mask, hidden.dtype),
            "position_embeddings": self.decoder.rotary_emb(hidden, position_ids=positions),
        } | self.decoding.prefill_arguments()


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask `[B, 1, L, L]` to be added to logits, with rows that begin at multiples of 16 numbers.

    Attention would make each of these of a bool mask in every layer anew.
    """
    if mask.dtype != torch.bool:
        return mask
    width = mask.shape[-1]
    whole = mask.new_full((*mask.shape[:-1], round_up(width, 16)), UNSEEN, dtype=dtype)
    whole[..., :width].masked_fill_(mask, 0)
    return whole[..., :width]
