"""What transformers calls the parts of a LLaVA: its vision tower, projector, decoder and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, LlavaForConditionalGeneration


def check_model(model: Any) -> None:
    """Raise `TypeError` unless `model` is a transformers LLaVA with a Llama decoder and a CLIP tower."""
    if not isinstance(model, LlavaForConditionalGeneration):
        raise TypeError(f"model: got {type(model).__name__}; expected transformers' LlavaForConditionalGeneration")
    if not isinstance(model.model.language_model, LlamaModel):
        kind = type(model.model.language_model).__name__
        raise TypeError(f"model: its language model is a {kind}; only Llama decoders (LLaVA-1.5) can be pruned")
    if (kind := model.config.vision_config.model_type) != "clip_vision_model":  # others have no CLS token first
        raise TypeError(f"model: its vision tower is a {kind!r}; only CLIP towers (LLaVA-1.5) can be pruned")


@dataclass(frozen=True)
class Parts:
    """The parts of a LLaVA that checkpoints name: the modules whose parameters make up the model."""

    tower: nn.Module
    projector: tuple[nn.Module, nn.Module]
    decoder: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, model: LlavaForConditionalGeneration) -> Parts:
        """The modules themselves; they may hold no weights yet."""
        projector, tower = model.model.multi_modal_projector, model.model.vision_tower
        return cls(
            getattr(tower, "vision_model", tower),
            (projector.linear_1, projector.linear_2),
            model.model.language_model,
            model.lm_head,
        )


def vision_blocks(model: LlavaForConditionalGeneration) -> nn.ModuleList:
    """The layers of the vision tower."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers


def normalise_patches(model: LlavaForConditionalGeneration, features: Tensor) -> Tensor:
    """Patch features after the tower's last normalisation, which CLIP applies before it projects."""
    tower = model.model.vision_tower
    norm = getattr(tower, "vision_model", tower).post_layernorm
    return norm(as_weights(norm, features.to(device_of(norm, features.device)))).to(features.device)


def decoder_layers(model: LlavaForConditionalGeneration) -> nn.ModuleList:
    """The layers of the language model."""
    return model.model.language_model.layers


def word_embeddings(model: LlavaForConditionalGeneration, input_ids: Tensor) -> Tensor:
    """The language model's embeddings of `input_ids` `[...]`: `[..., D]`."""
    embedding = model.get_input_embeddings()
    return embedding(input_ids.to(device_of(embedding, input_ids.device)))


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module computes. Weights that accelerate keeps elsewhere are on `meta`, but its hooks name the device."""
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    first = next(module.parameters(), None)
    return otherwise if first is None or first.device.type == "meta" else first.device


def as_weights(layer: nn.Module, values: Tensor) -> Tensor:
    """`values` in the type of a layer's weights, which differ from it under autocast only."""
    weight = getattr(layer, "weight", None)
    return values.to(weight.dtype) if isinstance(weight, Tensor) and weight.is_floating_point() else values
