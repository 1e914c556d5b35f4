"""Encoding images: what the vision tower and the projector say of them, and how `generate` accepts the result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finepruner_lmms.engine.parts import check_model, vision_blocks
from finepruner_lmms.ops.selection import fingerprint
from finepruner_lmms.pruners.vision_outputs import VisionOutputs


@torch.no_grad()
def encode_images(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> VisionOutputs:
    """Run the vision tower and the projector on `pixel_values` `[B, 3, S, S]`, one image a row."""
    check_model(model)
    config, layer = model.config, model.config.vision_feature_layer
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer: {layer} joins several layers; only a single one is supported")
    wanted = [layer - 1, layer]  # and what enters the layer that LLaVA reads, for its CLS token
    pixel_values = pixel_values.to(model.device, model.dtype)
    outputs = model.get_image_features(pixel_values, return_dict=True, output_hidden_states=wanted)
    features = outputs.hidden_states[layer]
    projected, keys = torch.stack(list(outputs.pooler_output)), fingerprint(pixel_values)
    projector = model.model.multi_modal_projector
    if config.vision_feature_select_strategy != "default":
        return VisionOutputs(features, projected, sample_keys=keys, projector=projector)
    attention, patch_keys = _cls_row(model, outputs.hidden_states)
    return VisionOutputs(
        features[:, 1:],
        projected,
        cls_attention=attention,
        sample_keys=keys,
        keys=patch_keys,
        cls_projected=projector(features[:, :1]),
        projector=projector,
    )


def _cls_row(model: LlavaForConditionalGeneration, hidden_states: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """In the layer whose output LLaVA reads: the CLS token's attention `[B, Hc, N]`, and the mean keys `[B, N, K]`.

    One row is computed again in float32 from the layer's input, so the tower's own attention stays SDPA or flash. The
    softmax runs over CLS and patches; the CLS column is cut off afterwards.
    """
    layer = model.config.vision_feature_layer
    number = layer % len(hidden_states) - 1  # hidden_states[i + 1] is what block i returns
    block, attn = vision_blocks(model)[number], vision_blocks(model)[number].self_attn
    inside = block.layer_norm1(hidden_states[number])
    query = attn.q_proj(inside[:, :1]).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2).float()
    keys = attn.k_proj(inside).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2).float()
    row = (query @ keys.transpose(2, 3) * attn.scale).softmax(-1)
    return row[:, :, 0, 1:], keys[:, :, 1:].mean(1)


def encoder_outputs(projected: Tensor) -> dict[str, Any]:
    """Visual tokens `[B, R, D]` in the form in which `generate` accepts images that are encoded already."""
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}}
