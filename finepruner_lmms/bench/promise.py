"""What the shapes promise: operations and bytes of each part, and the time that a device needs for them at best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.bench.roofline import Device
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.parts import Parts
from finepruner_lmms.engine.vision_tower import feature_layer
from finepruner_lmms.pruners import Pruner


@dataclass(frozen=True)
class Work:
    """Floating-point operations (2 per multiply-accumulate) of the matrix products, and bytes read and written.

    Of the bytes only weights and the key-value cache are counted: activations can stay in caches, these cannot.
    """

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, device: Device) -> float:
        """The roofline: whatever takes longer, at what this device reached in a product and in a copy."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth)


@dataclass(frozen=True)
class Promise:
    """The work of one batch: encoding its images, its prefill, and one decode step after `tokens` new tokens."""

    vision: Work
    prefill: Work
    step: Work

    def seconds(self, device: Device, tokens: int) -> float:
        """From pixels to `tokens` new tokens."""
        steps = (tokens - 1) * self.step.seconds(device)
        return self.vision.seconds(device) + self.prefill.seconds(device) + steps


def promise(model: LlavaForConditionalGeneration, pruner: Pruner, batch: int, text: float, tokens: int) -> Promise:
    """For `batch` prompts of `text` tokens around an image; the step is the middle one of `tokens`."""
    geometry, sizes = Geometry.of(model.config), DecoderSizes.of(model.config.text_config)
    schedule = pruner.schedule(geometry.num_layers, geometry.num_visual_tokens)
    lengths = [round(text) + visual for visual in schedule]
    scored = pruner.scored_layers(geometry.num_layers, geometry.num_visual_tokens)
    parts = Parts.of(model)
    element = model.dtype.itemsize
    head = 2 * sizes.hidden * model.config.text_config.vocab_size
    weights = _bytes([*_decoder_layers(parts.decoder), parts.head])
    prefill = Work(
        batch * (prefill_flops(sizes, lengths, scored) + head), weights + batch * _cache(sizes, lengths, element)
    )
    later = [length + tokens / 2 for length in lengths]
    step = Work(
        batch * (sum(_step_flops(sizes, length) for length in later) + head),
        weights + batch * _cache(sizes, later, element),
    )
    return Promise(_vision(model, parts, batch), prefill, step)


def _decoder_layers(decoder: nn.Module) -> list[nn.Module]:
    """All of the decoder but its embeddings, of which a few rows are read."""
    return [module for name, module in decoder.named_children() if name != "embed_tokens"]


def _bytes(modules: Sequence[nn.Module]) -> int:
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def _cache(sizes: DecoderSizes, lengths: Sequence[float], element: int) -> float:
    return sum(2 * length * sizes.key_value_width * element for length in lengths)


def _step_flops(sizes: DecoderSizes, length: float) -> float:
    d, m, q, kv = sizes.hidden, sizes.feed_forward, sizes.query_width, sizes.key_value_width
    return 2 * (2 * d * q + 2 * d * kv + 3 * d * m + 2 * length * q)


def _vision(model: LlavaForConditionalGeneration, parts: Parts, batch: int) -> Work:
    """The tower up to the layer that LLaVA reads, and the projector."""
    config: Any = model.config.vision_config
    width, inner, layers = config.hidden_size, config.intermediate_size, feature_layer(model)
    patches = (config.image_size // config.patch_size) ** 2
    n, text = patches + 1, model.config.text_config.hidden_size
    layer = n * (4 * width * width + 2 * width * inner) + 2 * n * n * width
    embedding = patches * width * 3 * config.patch_size**2
    projector = patches * (width * text + text * text)
    weights = _bytes([parts.tower, *parts.projector]) * layers // max(config.num_hidden_layers, 1)
    return Work(2 * batch * (layers * layer + embedding + projector), weights)
