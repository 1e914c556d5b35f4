"""The prompts that methods start from: the whole one, and those that methods before the language model shorten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.parts import word_embeddings
from finepruner_lmms.engine.prompt_layout import Layout, read_layout


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts with `left` placeholders per image; `words` `[B, L, D]` are embedded, the images are not."""

    left: int
    layout: Layout
    words: Tensor
    positions: Tensor

    @classmethod
    def read(
        cls, model: LlavaForConditionalGeneration, ids: Tensor, mask: Tensor, image_token_id: int, left: int
    ) -> Prompt:
        """Of token ids and their mask, `[B, L]`."""
        layout = read_layout(ids, mask, image_token_id, left)
        positions = (layout.valid.long().cumsum(1) - 1).clamp(min=0)
        return cls(left, layout, word_embeddings(model, ids), positions)

    @property
    def lengths(self) -> Tensor:
        """`[B, 1]`: the tokens of each, which is the position of the first generated one."""
        return self.positions[:, -1:] + 1

    def with_images(self, visual: Tensor | None) -> Tensor:
        """What enters the first layer, `[B, L, D]`: `visual` `[images, left, D]` in place of the placeholders."""
        if visual is None or not self.left:
            return self.words
        device = self.words.device
        rows = torch.tensor([row for row, shown in enumerate(self.layout.has_image) if shown], device=device)
        embeds = self.words.clone()
        embeds[rows[:, None], self.layout.columns[rows]] = visual.to(device, embeds.dtype)
        return embeds
