"""Encoding images: what the vision tower and the projector say of them, and how `generate` accepts the result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finepruner_lmms.engine.parts import as_weights, check_model, device_of, vision_blocks
from finepruner_lmms.engine.tower_reading import (
    attention_of,
    blocks_of,
    cls_attention,
    early_layer,
    heads_of,
    read_block,
    received_attention,
    watch,
)
from finepruner_lmms.errors import FieldError
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.ops.selection import fingerprint
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish, VisionOutputs


@torch.no_grad()
def encode_images(
    model: LlavaForConditionalGeneration, pixel_values: Tensor, wish: TowerWish = NOTHING_MORE
) -> VisionOutputs:
    """Run the vision tower and the projector on `pixel_values` `[B, 3, S, S]`, one image per row.

    What `wish` asks for is there, too; where it says that nobody reads them, the tokens are zeros and the tower does
    not run. All of the result is on the device of the projected tokens. Raises `FieldError` for a
    `vision_feature_layer` that the tower does not have, or that joins several.
    """
    check_model(model)
    tower = model.model.vision_tower
    if wish.unread:
        return _unread(model, pixel_values)
    pixels = pixel_values.to(device_of(tower, pixel_values.device), model.dtype)
    if not wish:
        return encode_chunk(model, pixels)
    late = attention_of(read_block(tower, feature_layer(model))) if wish.received else None
    place = early_layer(wish, len(blocks_of(tower)))
    early = None if place is None else attention_of(blocks_of(tower)[place])
    with watch(late, early) as (attending, attending_early):
        vision = encode_chunk(model, pixels)
    found: dict[str, Tensor] = {}
    with for_choosing(pixels.device):
        # CLIP's CLS token stands first, whatever LLaVA does with it
        if late is not None:
            found["received_attention"] = received_attention(*heads_of(late, attending), special=1)
        if early is not None:
            heads = heads_of(early, attending_early)
            found["early_received"] = received_attention(*heads, special=1)
            found["early_cls_attention"] = cls_attention(*heads)
    return vision.replace(
        early=wish.early, **{name: values.to(vision.projected.device) for name, values in found.items()}
    )


def _unread(model: LlavaForConditionalGeneration, pixels: Tensor) -> VisionOutputs:
    """Images of which nobody reads anything: zeros, which take no memory; NaN where the pixels are not finite."""
    config, vision, projector = model.config, model.config.vision_config, model.model.multi_modal_projector
    count = (vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full")
    zero = (pixels.float().flatten(1).sum(1) * 0).to(device_of(projector, model.device), model.dtype)[:, None, None]
    return VisionOutputs(
        zero.expand(-1, count, vision.hidden_size),
        zero.expand(-1, count, config.text_config.hidden_size),
        sample_keys=fingerprint(pixels).to(zero.device),
        projector=Projector(projector),
    )


@torch.no_grad()
def encode_chunk(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> VisionOutputs:
    """`encode_images` of pixels `[B, 3, S, S]` that have the tower's device and type already.

    Tensors in, tensors out: nothing here waits for the device or copies from or to the host, so that a CUDA graph can
    capture it.
    """
    config, layer = model.config, feature_layer(model)
    projector = Projector(model.model.multi_modal_projector)
    # and what enters the layer that LLaVA reads, for its CLS token; layer 0 is the embeddings, which no layer made
    wanted = [layer - 1, layer] if layer else [0]
    outputs = model.get_image_features(pixel_values, return_dict=True, output_hidden_states=wanted)
    projected = torch.stack(list(outputs.pooler_output))
    features, device = outputs.hidden_states[layer], projected.device
    vision = VisionOutputs(
        features.to(device), projected, sample_keys=fingerprint(pixel_values).to(device), projector=projector
    )
    if config.vision_feature_select_strategy != "default":
        return vision
    vision = vision.replace(features=vision.features[:, 1:], cls_projected=projector(vision.features[:, :1]))
    if not layer:
        return vision
    with for_choosing(device):
        attention, keys = _cls_row(vision_blocks(model)[layer - 1], outputs.hidden_states[layer - 1])
    return vision.replace(cls_attention=attention.to(device), keys=keys.to(device))


def feature_layer(model: LlavaForConditionalGeneration) -> int:
    """Which of the tower's hidden states LLaVA reads, counted from 0, the embeddings."""
    layer, count = model.config.vision_feature_layer, len(vision_blocks(model)) + 1
    if not isinstance(layer, int):
        raise FieldError(
            "vision_feature_layer", f"{layer} joins several layers; only a single one is supported", value=layer
        )
    if not -count <= layer < count:
        raise FieldError(
            "vision_feature_layer", f"got {layer}; the vision tower has {-count} to {count - 1}", value=layer
        )
    return layer % count


class Projector:
    """The model's projector, for tokens in whatever type a method made them."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, features: Tensor) -> Tensor:
        """Features `[B, M, C]` → visual tokens `[B, M, D]`."""
        return self.module(as_weights(self.module.linear_1, features))


def _cls_row(block: Any, entering: Tensor) -> tuple[Tensor, Tensor]:
    """In a layer of the tower: the CLS token's attention `[B, Hc, N]`, and the mean keys `[B, N, K]`, in float32.

    One row is computed again from `entering` `[B, 1 + N, C]`, so the tower's own attention stays SDPA or flash. The
    softmax runs over CLS and patches; the CLS column is cut off afterwards.
    """
    attn, entering = block.self_attn, entering.to(device_of(block, entering.device))
    inside = block.layer_norm1(as_weights(block.layer_norm1, entering))
    query = attn.q_proj(as_weights(attn.q_proj, inside[:, :1])).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    keys = attn.k_proj(as_weights(attn.k_proj, inside)).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2).float()
    row = (query.float() @ keys.transpose(2, 3) * attn.scale).softmax(-1)
    return row[:, :, 0, 1:], keys[:, :, 1:].mean(1)


def encoder_outputs(projected: Tensor) -> dict[str, Any]:
    """Visual tokens `[B, R, D]` in the form in which `generate` accepts images that are encoded already."""
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}}
