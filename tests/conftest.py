"""Small random models and batches that the tests share. Nothing is downloaded."""

from __future__ import annotations

import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE, PAD, VISUAL = 99, 0, 16


@functools.cache
def tiny_llava(attention: str = "sdpa", layers: int = 6) -> LlavaForConditionalGeneration:
    """A random LLaVA with 16 visual tokens and grouped-query attention (8 query heads, 4 KV heads)."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.2,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=VISUAL)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    return model


def prompts(*rows: tuple[int, int] | int, seed: int = 1) -> dict[str, torch.Tensor]:
    """A left-padded batch. `(a, b)`: a text tokens, an image, b text tokens; a number: that many text tokens."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> torch.Tensor:
        return torch.randint(2, 98, (count,), generator=generator)

    ids = []
    for row in rows:
        if isinstance(row, int):
            ids.append(words(row))
        else:
            ids.append(torch.cat([words(row[0]), torch.full((VISUAL,), IMAGE), words(row[1])]))
    width = max(map(len, ids))
    batch = torch.stack([torch.cat([torch.full((width - len(row),), PAD), row]) for row in ids])
    images = sum(not isinstance(row, int) for row in rows)
    pixels = torch.randn(images, 3, 16, 16, generator=generator) if images else None
    inputs = {"input_ids": batch, "attention_mask": (batch != PAD).long()}
    return inputs if pixels is None else inputs | {"pixel_values": pixels}


def alone(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    single = {"input_ids": inputs["input_ids"][row, real][None], "attention_mask": real[real].long()[None]}
    shown = (inputs["input_ids"] == IMAGE).any(1)
    if shown[row]:
        image = int(shown[:row].sum())
        single["pixel_values"] = inputs["pixel_values"][image : image + 1]
    return single


@pytest.fixture(autouse=True)
def one_thread():
    """Small models run faster on one thread, and the machine's other cores stay free."""
    torch.set_num_threads(1)
