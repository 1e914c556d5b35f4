"""The demo model's architecture: LLaVA-1.5's geometry (576 visual tokens, 32 decoder layers), very narrow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from finepruner_lmms.demo.scenes import GRID, IMAGE_SIZE, PATCH

WIDTH, FEED_FORWARD, HEADS = 96, 192, 8
SHALLOW, DEEP = 8, 32
KEPT_EARLY = 2  # layers 0 and 1 stay where they are when the decoder grows: the first drop comes after them
VISUAL = GRID * GRID


@dataclass(frozen=True)
class TowerSize:
    """How wide and deep a vision tower is; its feed-forward is twice as wide."""

    width: int
    layers: int
    heads: int


TOWER = TowerSize(128, 4, 4)


def build(
    vocabulary: int, ids: dict[str, int], layers: int, seed: int, tower: TowerSize = TOWER, rope: float = 1e5
) -> LlavaForConditionalGeneration:
    """An untrained model of `layers` decoder layers. Weights start at about 1/sqrt(width), which trains faster here."""
    vision = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=2 * tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": rope},
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                scale = weight.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale *= 0.4
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        embeddings = tower_of(model).embeddings
        patch = embeddings.patch_embedding.weight
        patch.copy_(torch.randn(patch.shape, generator=generator) * (3 * PATCH * PATCH) ** -0.5)
        embeddings.class_embedding.copy_(torch.randn(tower.width, generator=generator) * 0.3)
        embeddings.position_embedding.weight[1:].copy_(_plane_waves(tower.width) * 0.5)
        words = model.get_input_embeddings().weight
        words.copy_(torch.randn(words.shape, generator=generator) * 0.5)
    return model


def tower_of(model: LlavaForConditionalGeneration) -> torch.nn.Module:
    """The part of the vision tower that holds embeddings and layers."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


def _plane_waves(width: int) -> torch.Tensor:
    """`[576, width]`: sines and cosines of row and column, a start from which neighbours are easy to find."""
    quarter = width // 4
    frequency = 2 * np.pi / (2.2 * (60 / 2.2) ** (np.arange(quarter) / (quarter - 1)))
    angle = np.arange(GRID)[:, None] * frequency[None]
    line = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    rows = np.repeat(line[:, None], GRID, 1)
    columns = np.repeat(line[None], GRID, 0)
    return torch.tensor(np.concatenate([rows, columns], -1).reshape(VISUAL, -1), dtype=torch.float32)
