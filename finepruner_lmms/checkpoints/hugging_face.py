"""Checkpoints in the format of transformers: read by it, and refused unless every weight is the checkpoint's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING
from transformers.activations import ACT2FN

from finepruner_lmms.checkpoints.fetch import fetch_small, fetch_weights
from finepruner_lmms.checkpoints.generation_config import greedy_config
from finepruner_lmms.checkpoints.processor import PicturesOnly, read_family_processor, read_processor
from finepruner_lmms.checkpoints.shape import ModelShape
from finepruner_lmms.checkpoints.supported import check_layer, check_supported, check_token, check_tokens
from finepruner_lmms.checkpoints.weights import Weights, check_size, parameters
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.engine.loading_report import check_report
from finepruner_lmms.errors import FieldError, check_choice, first_line
from finepruner_lmms.files import load_object

_CONFIG_ERRORS = (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError)


def hugging_face_config(raw: dict[str, Any]) -> Any:
    """The configuration that a config.json says. `FieldError` naming the entry that cannot be pruned or read."""
    family = check_supported(raw)
    try:
        config: Any = CONFIG_MAPPING[family.model_type].from_dict(raw)
    except _CONFIG_ERRORS as error:
        problem = f"not the configuration of a {family.title}: {' '.join(str(error).split())}"
        raise FieldError("config.json", problem) from error
    family.check(config)
    for part, name in (("vision_config.", "hidden_act"), ("text_config.", "hidden_act"), ("", "projector_hidden_act")):
        owner = getattr(config, part[:-1]) if part else config
        if (value := getattr(owner, name, None)) is not None:
            check_choice(f"{part}{name}", value, ACT2FN)
    for name, token in family.placeholders(config).items():
        check_token(token, config.text_config.vocab_size, f"{name}_token_{'index' if name == 'image' else 'id'}")
    if family.num_visual_tokens(config) is not None:
        check_layer(config.vision_feature_layer, config.vision_config.num_hidden_layers)
        check_tokens(config.vision_config.image_size, config.vision_config.patch_size)
    # pruning needs the cache, and a direct forward asks here whether to keep one
    config.text_config.use_cache = True
    return config


@dataclass(frozen=True)
class HuggingFaceCheckpoint:
    """What is known of a checkpoint before its weights are read."""

    name: str
    folder: Path
    config: Any
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
        read = read_processor if config.model_type == "llava" else read_family_processor
        processor = read(folder, config, name)
        return cls(name, folder, config, processor, raw.get("quantization_config") is not None)

    def model(self, dtype: torch.dtype | None, device: torch.device | str, attn_implementation: str) -> Any:
        """The model on `device`, each tensor read to where it stays; `dtype` None is the checkpoint's own type.

        `device` is `"auto"` where accelerate is to spread the layers over all GPUs.

        `FieldError` naming the weights that are missing, unknown or of another shape, or the file that is damaged.
        """
        generation, family = self._generation_config(), find_family(self.config.model_type)
        fetch_weights(self.name, self.folder)
        weights = Weights.find(self.folder)
        weights.check(quantized=self.quantized)
        if not self.quantized:
            check_size(self._described(), weights)
        if any("mm_projector." in name for name in weights.files):
            raise FieldError(
                "weights",
                f"{str(self.folder)!r} holds weights under the names of the original LLaVA code base, but the "
                "config.json of a Hugging Face checkpoint",
                fix="put the config.json there that came with the weights",
            )
        try:
            model, report = getattr(transformers, family.model_class).from_pretrained(
                self.folder,
                config=self.config,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=attn_implementation,
                device_map=device if isinstance(device, str) else {"": device},
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
        check_report(report, "weights", str(self.folder), family.title)
        model.generation_config = generation
        return model

    def _described(self) -> int:
        """About how many numbers the model of the configuration has."""
        if self.config.model_type == "llava":
            return parameters(ModelShape.of(self.config))
        with torch.device("meta"):
            model = getattr(transformers, find_family(self.config.model_type).model_class)(self.config)
        return sum(one.numel() for one in model.parameters())

    def _generation_config(self) -> Any:
        file = self.folder / "generation_config.json"
        given = load_object(file) if file.is_file() else {}
        images = set(find_family(self.config.model_type).placeholders(self.config).values())
        rows = self.config.text_config.vocab_size
        if isinstance(self.processor, PicturesOnly):
            pad, words = None, min(images)
        else:
            tokenizer = self.processor.tokenizer
            pad, words = tokenizer.pad_token_id, len(tokenizer)
        no_words = {*images, *range(words, rows)} | ({pad} if pad is not None else set())
        eos = given.get("eos_token_id", self.config.text_config.eos_token_id)
        no_words -= set(eos) if isinstance(eos, list) else {eos}
        return greedy_config(given, self.config, pad=pad, no_words=no_words, name=self.name)
