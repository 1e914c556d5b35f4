"""LLaVAs by their shape alone: random weights, made on the device itself, so that speed needs no download."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from finepruner_lmms.errors import check_choice

_PAD, _IMAGE = 0, 5
_LIFE = 1.5  # size of a matrix product's output where its input has size 1: attention is neither flat nor one-hot


@dataclass(frozen=True)
class Shape:
    """The sizes that speed depends on; the tower's `layers` are those of its checkpoint, patches are 14 pixels."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    vocabulary: int
    tower_hidden: int = 1024
    tower_feed_forward: int = 4096
    tower_layers: int = 24
    tower_heads: int = 16
    image_size: int = 336

    def config(self) -> LlavaConfig:
        """As transformers has it."""
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=4096,
            eos_token_id=None,
            pad_token_id=_PAD,
        )
        vision = CLIPVisionConfig(
            hidden_size=self.tower_hidden,
            intermediate_size=self.tower_feed_forward,
            num_hidden_layers=self.tower_layers,
            num_attention_heads=self.tower_heads,
            image_size=self.image_size,
            patch_size=14,
            projection_dim=768,
        )
        visual = (self.image_size // 14) ** 2
        return LlavaConfig(vision_config=vision, text_config=text, image_token_id=_IMAGE, image_seq_length=visual)


SHAPES = {
    "llava-1.5-7b": Shape(4096, 11008, 32, 32, 32064),
    "llava-1.5-13b": Shape(5120, 13824, 40, 40, 32064),
    # decoders that a CPU runs in seconds; LLaVA's 576 visual tokens
    "wide": Shape(1024, 2752, 8, 16, 1000, 256, 512, 4, 4),
    # for tests: 64 visual tokens
    "tiny": Shape(64, 128, 8, 4, 300, 32, 64, 3, 4, 112),
}


def random_llava(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA of one of `SHAPES` with random weights, ready for inference. No host copy is made."""
    check_choice("--like", shape, SHAPES)
    config = SHAPES[shape].config()
    config._attn_implementation = "sdpa"
    with torch.device(device), _default(dtype):
        model = LlavaForConditionalGeneration(config).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, _LIFE / math.sqrt(weight[0].numel()), generator=generator)
        for embedding in (model.get_input_embeddings().weight, *_places(model)):
            embedding.normal_(generator=generator)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, _PAD
    return model


def _places(model: LlavaForConditionalGeneration) -> list[torch.Tensor]:
    """The tower's embeddings of positions."""
    return [weight for name, weight in model.named_parameters() if name.endswith("position_embedding.weight")]


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
