"""What is asked: random words around random images for a random model, questions about drawn scenes for a real one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.geometry import Geometry


@dataclass(frozen=True)
class Prompts:
    """A left-padded batch on the model's device: `input_ids` and `attention_mask` `[B, L]`, `pixels` `[B, 3, S, S]`."""

    ids: Tensor
    mask: Tensor
    pixels: Tensor
    questions: list[str]
    visual: int

    @property
    def from_pixels(self) -> dict[str, Tensor]:
        """As `generate` takes them."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "pixel_values": self.pixels}

    def encoded(self, vision: Any) -> dict[str, Any]:
        """With images that `encode_images` has encoded."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "vision": vision}

    @property
    def text(self) -> float:
        """Text tokens of a prompt, the mean of the batch."""
        return self.mask.sum().item() / len(self.mask) - self.visual


def random_prompts(model: LlavaForConditionalGeneration, batch: int, text: int, seed: int = 0) -> Prompts:
    """`text` random words in each prompt, the image after a half and a bit of them, as in LLaVA's conversation."""
    geometry, generator = Geometry.of(model.config), torch.Generator().manual_seed(seed)
    before, visual, side = (3 * text) // 5, geometry.num_visual_tokens, model.config.vision_config.image_size
    # ids below ten are those of padding, begin, end and the image in the random models
    words = torch.randint(10, model.config.text_config.vocab_size, (batch, text), generator=generator)
    images = torch.full((batch, visual), geometry.image_token_id)
    ids = torch.cat([words[:, :before], images, words[:, before:]], dim=1).to(model.device)
    pixels = torch.randn(batch, 3, side, side, generator=generator).to(model.device, model.dtype)
    return Prompts(ids, torch.ones_like(ids), pixels, ["What is shown?"] * batch, visual)


def scene_prompts(model: LlavaForConditionalGeneration, processor: Any, batch: int) -> Prompts:
    """Questions with one-word answers, about scenes of the demo's benchmarks: photographs with shapes on them."""
    from finepruner_lmms.checkpoints.images import preprocess
    from finepruner_lmms.checkpoints.prompts import prompt, prompt_ids
    from finepruner_lmms.demo.questions import ask
    from finepruner_lmms.demo.scenes import make_scene

    geometry, rng = Geometry.of(model.config), random.Random(0)
    rows: list[list[int]] = []
    pixels: list[Tensor] = []
    questions: list[str] = []
    kinds, index = ("exist", "count", "color", "read"), 0
    while len(rows) < batch:
        scene = make_scene("test", index)
        asked = ask(scene, kinds[index % len(kinds)], rng)
        index += 1
        if asked is None:  # this scene allows no such question
            continue
        text = prompt("vicuna_v1", processor, asked.prompt(), True)
        rows.append(prompt_ids(processor.tokenizer, text, geometry.image_token_id, geometry.num_visual_tokens))
        pixels.append(preprocess(processor.image_processor, scene.image()))
        questions.append(asked.prompt())
    width = max(map(len, rows))
    padding = processor.tokenizer.pad_token_id
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    device = model.device
    images = torch.stack(pixels).to(device, model.dtype)
    return Prompts(ids.to(device), mask.to(device), images, questions, geometry.num_visual_tokens)
