"""The vocabulary of an original checkpoint, grown by the tokens that transformers' LLaVA needs.

The prompt needs a token that stands for the image, so the vocabulary grows as in the published conversions: `<image>`
and `<pad>` after the last word, and rows up to a multiple of 64. A new row is the mean of the trained ones of its
matrix: its logit is the mean of theirs, which is never the largest, and `generate` is told to leave it out. (The
conversions draw both matrices' rows around the mean input embedding, whose logit has no such bound.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig

from finepruner_lmms.checkpoints.prompts import IMAGE

_PAD = "<pad>"
_MULTIPLE = 64


@dataclass(frozen=True)
class Vocabulary:
    """`trained` rows of the checkpoint, `rows` after growing, and the numbers of the two new tokens."""

    trained: int
    rows: int
    image: int
    pad: int

    @classmethod
    def of(cls, config: LlavaConfig, tokenizer: Any) -> Vocabulary:
        """Add the tokens to `tokenizer`, if there is one, and number them."""
        trained = config.text_config.vocab_size
        image, pad = trained, trained + 1
        if tokenizer is not None:
            tokenizer.add_tokens([IMAGE], special_tokens=True)
            tokenizer.add_special_tokens({"pad_token": _PAD})
            image, pad = tokenizer.convert_tokens_to_ids([IMAGE, _PAD])
        needed = max(trained, len(tokenizer) if tokenizer is not None else 0, image + 1, pad + 1)
        return cls(trained, -(-needed // _MULTIPLE) * _MULTIPLE, image, pad)

    def enter(self, config: LlavaConfig) -> None:
        """Write the numbers into a configuration."""
        config.image_token_index = self.image
        config.text_config.vocab_size = self.rows
        config.text_config.pad_token_id = self.pad

    @property
    def never(self) -> list[int]:
        """What no answer may hold: tokens that the checkpoint was not trained with."""
        return sorted({self.image, self.pad, *range(self.trained, self.rows)})

    def grow(self, weight: Tensor) -> Tensor:
        """`[trained, D]` → `[rows, D]`."""
        grown = weight.new_empty(self.rows, weight.shape[1])
        grown[: self.trained] = weight
        grown[self.trained :] = weight.mean(0, dtype=torch.float32).to(weight.dtype)
        return grown
