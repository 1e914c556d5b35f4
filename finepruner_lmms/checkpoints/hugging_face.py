"""Checkpoints in the format of transformers: read by it, and refused unless every weight is the checkpoint's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.activations import ACT2FN

from finepruner_lmms.checkpoints.fetch import fetch_small, fetch_weights
from finepruner_lmms.checkpoints.generation_config import greedy_config
from finepruner_lmms.checkpoints.processor import PicturesOnly, read_processor
from finepruner_lmms.checkpoints.shape import ModelShape
from finepruner_lmms.checkpoints.supported import check_layer, check_supported, check_token, check_tokens
from finepruner_lmms.checkpoints.weights import Weights, check_size
from finepruner_lmms.engine.loading_report import check_report
from finepruner_lmms.errors import FieldError, check_choice, first_line
from finepruner_lmms.files import load_object

_CONFIG_ERRORS = (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError)


def hugging_face_config(raw: dict[str, Any]) -> LlavaConfig:
    """The configuration that a config.json says. `FieldError` naming the entry that cannot be pruned or read."""
    check_supported(raw)
    try:
        config = LlavaConfig.from_dict(raw)
    except _CONFIG_ERRORS as error:
        problem = f"not the configuration of a LLaVA: {' '.join(str(error).split())}"
        raise FieldError("config.json", problem) from error
    check_layer(config.vision_feature_layer, config.vision_config.num_hidden_layers)
    for field, name in (
        ("vision_config.hidden_act", config.vision_config.hidden_act),
        ("text_config.hidden_act", config.text_config.hidden_act),
        ("projector_hidden_act", config.projector_hidden_act),
    ):
        check_choice(field, name, ACT2FN)
    check_token(config.image_token_id, config.text_config.vocab_size)
    check_tokens(config.vision_config.image_size, config.vision_config.patch_size)
    # pruning needs the cache, and a direct forward asks here whether to keep one
    config.text_config.use_cache = True
    return config


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """What is known of a checkpoint before its weights are read."""

    name: str
    folder: Path
    config: LlavaConfig
    processor: Any
    quantized: bool

    @classmethod
    def open(cls, name: str, raw: dict[str, Any]) -> HuggingFaceCheckpoint:
        """Read all but the weights; `raw` is the config.json. `FieldError` naming what is damaged or does not fit."""
        config = hugging_face_config(raw)
        folder = fetch_small(name)
        if (folder / "adapter_config.json").is_file():  # transformers would take the weights from where this points
            problem = f"{str(folder)!r} holds an adapter; only whole checkpoints are read"
            raise FieldError("adapter_config.json", problem, value=str(folder), fix="merge it into its model first")
        processor = read_processor(folder, config, name)
        return cls(name, folder, config, processor, raw.get("quantization_config") is not None)

    def model(
        self, dtype: torch.dtype | None, device: torch.device, attn_implementation: str
    ) -> LlavaForConditionalGeneration:
        """The model on `device`, each tensor read to where it stays; `dtype` None is the checkpoint's own type.

        `FieldError` naming the weights that are missing, unknown or of another shape, or the file that is damaged.
        """
        generation = self._generation_config()
        fetch_weights(self.name, self.folder)
        weights = Weights.find(self.folder)
        weights.check(quantized=self.quantized)
        if not self.quantized:
            check_size(ModelShape.of(self.config), weights)
        if any("mm_projector." in name for name in weights.files):
            raise FieldError(
                "weights",
                f"{str(self.folder)!r} holds weights under the names of the original LLaVA code base, but the "
                "config.json of a Hugging Face checkpoint",
                fix="put the config.json there that came with the weights",
            )
        try:
            model, report = LlavaForConditionalGeneration.from_pretrained(
                self.folder,
                config=self.config,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=attn_implementation,
                device_map={"": device},
                generation_config=generation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they come with the report
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ImportError, ValueError, RuntimeError, SafetensorError) as error:
            raise FieldError("weights", f"cannot read {str(self.folder)!r}: {first_line(error)}") from error
        check_report(report, "weights", str(self.folder), "LLaVA-1.5")
        model.generation_config = generation
        return model

    def _generation_config(self) -> Any:
        file = self.folder / "generation_config.json"
        given = load_object(file) if file.is_file() else {}
        image, rows = self.config.image_token_id, self.config.text_config.vocab_size
        if isinstance(self.processor, PicturesOnly):
            pad, words = None, image
        else:
            tokenizer = self.processor.tokenizer
            pad, words = tokenizer.pad_token_id, len(tokenizer)
        no_words = {image, *range(words, rows)} | ({pad} if pad is not None else set())
        eos = given.get("eos_token_id", self.config.text_config.eos_token_id)
        no_words -= set(eos) if isinstance(eos, list) else {eos}
        return greedy_config(given, self.config, pad=pad, no_words=no_words, name=self.name)
