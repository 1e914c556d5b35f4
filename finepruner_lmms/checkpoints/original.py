"""Checkpoints of the original LLaVA code base, read into an unmodified transformers LLaVA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from finepruner_lmms.checkpoints.fetch import fetch_small, fetch_weights
from finepruner_lmms.checkpoints.generation_config import greedy_config
from finepruner_lmms.checkpoints.original_config import convert_config, tower_image_processor, warn_of_aspect_ratio
from finepruner_lmms.checkpoints.original_weights import fill
from finepruner_lmms.checkpoints.processor import PicturesOnly, check_sizes, read_tokenizer
from finepruner_lmms.checkpoints.prompts import VICUNA_TEMPLATE
from finepruner_lmms.checkpoints.sentencepiece_tokenizer import read_sentencepiece
from finepruner_lmms.checkpoints.vocabulary import Vocabulary
from finepruner_lmms.checkpoints.weights import Weights
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object


@dataclass(frozen=True)
class OriginalCheckpoint:
    """What is known of a checkpoint before its weights are read."""

    name: str
    folder: Path
    raw: dict[str, Any]
    config: LlavaConfig
    vocabulary: Vocabulary
    processor: Any

    @classmethod
    def open(cls, name: str, raw: dict[str, Any]) -> OriginalCheckpoint:
        """Read all but the weights; `raw` is the config.json. `FieldError` naming what is damaged or does not fit."""
        config = convert_config(raw, name)
        warn_of_aspect_ratio(raw, name)
        folder = fetch_small(name)
        if (folder / "tokenizer.model").is_file():  # what the original code reads
            tokenizer = read_sentencepiece(folder, padding_side="left")
        else:
            tokenizer = read_tokenizer(folder)
        vocabulary = Vocabulary.of(config, tokenizer)
        vocabulary.enter(config)
        pictures = tower_image_processor(config.mm_vision_tower)
        check_sizes(pictures, config)
        if tokenizer is None:
            return cls(name, folder, raw, config, vocabulary, PicturesOnly(pictures, name))
        processor = LlavaProcessor(
            image_processor=pictures,
            tokenizer=tokenizer,
            patch_size=config.vision_config.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=VICUNA_TEMPLATE,
        )
        return cls(name, folder, raw, config, vocabulary, processor)

    def model(
        self, dtype: torch.dtype | None, device: torch.device, attn_implementation: str
    ) -> LlavaForConditionalGeneration:
        """The model on `device`; `dtype` None is the checkpoint's own type.

        One shard at a time is read, cast and moved; all names are checked before. `FieldError` naming the files or
        tensors that are missing, damaged, unknown or of another shape.
        """
        stored = dtype or _stored_type(self.raw)
        file = self.folder / "generation_config.json"
        given = load_object(file) if file.is_file() else {}
        generation = greedy_config(
            given | {"suppress_tokens": self.vocabulary.never},
            self.config,
            pad=self.vocabulary.pad,
            no_words=self.vocabulary.never,
            name=self.name,
        )
        fetch_weights(self.name, self.folder)
        weights = Weights.find(self.folder)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(
                self.config, attn_implementation=attn_implementation, trust_remote_code=False
            )
        fill(model, weights, self.vocabulary, stored, device)
        model.generation_config = generation
        return model


def _stored_type(raw: dict[str, Any]) -> torch.dtype:
    """The type that a checkpoint says its weights have."""
    given = raw.get("dtype") or raw.get("torch_dtype")
    found = getattr(torch, str(given), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        problem = f"got {given!r} in config.json; give dtype as float16, bfloat16 or float32"
        raise FieldError("torch_dtype", problem, value=given)
    return found
