"""Loading a LLaVA: a checkpoint of either format (hub id or folder), or the small model that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from finepruner_lmms.checkpoints.original import load_original
from finepruner_lmms.checkpoints.original_config import convert_config, is_original
from finepruner_lmms.checkpoints.weights import fetch_file, read_json
from finepruner_lmms.engine.clip import clip_checkpoint
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.parts import check_model
from finepruner_lmms.pruners import Pruner

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve(pretrained: str) -> str:
    """The hub id or folder meant by `pretrained`; `demo` is the folder of the embedded model."""
    return str(DEMO) if pretrained == "demo" else pretrained


def read_raw_config(pretrained: str) -> dict[str, Any]:
    """What a checkpoint's config.json says. `ValueError` if there is none."""
    name = resolve(pretrained)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ValueError(f"pretrained: the folder {pretrained!r} holds no config.json, so it is not a checkpoint")
    try:
        return read_json(fetch_file(name, "config.json"))
    except ValueError as error:
        raise ValueError(f"pretrained: cannot read the configuration of {pretrained!r}: {error}") from error


def read_config(pretrained: str) -> LlavaConfig:
    """The configuration of a checkpoint, without its weights. `ValueError` if it is not a LLaVA that can be pruned."""
    raw = read_raw_config(pretrained)
    if is_original(raw):
        try:
            return convert_config(raw, resolve(pretrained))
        except ValueError as error:
            raise ValueError(f"pretrained: {error}") from error
    try:
        config = AutoConfig.from_pretrained(resolve(pretrained))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"pretrained: cannot read the configuration of {pretrained!r}: {_first_line(error)}"
        ) from error
    if not isinstance(config, LlavaConfig):
        raise ValueError(
            f"pretrained: {pretrained!r} is a {config.model_type!r} model; only LLaVA-1.5 ('llava') can be pruned"
        )
    return config


def read_geometry(pretrained: str) -> tuple[int, int]:
    """Decoder layers and visual tokens an image, read from the checkpoint's configuration only."""
    geometry = Geometry.of(read_config(pretrained))
    return geometry.num_layers, geometry.num_visual_tokens


def check_pruner(pruner: Pruner, config: LlavaConfig) -> None:
    """Raise `ValueError` where a model of this configuration cannot do what the pruner asks: no weights are read."""
    geometry = Geometry.of(config)
    pruner.schedule(geometry.num_layers, geometry.num_visual_tokens)
    pruner.check_heads(geometry.num_heads)
    before, _ = pruner.parts(geometry.num_visual_tokens)
    if before is not None and before.reads_question == "clip":
        clip_checkpoint(config, getattr(before, "clip", None))


def load_model(
    pretrained: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str = "sdpa",
) -> tuple[LlavaForConditionalGeneration, Any]:
    """The model, ready for inference, and its processor (left padding).

    `pretrained` is a hub id or a folder, of a Hugging Face LLaVA or of the original code base, or `demo`.
    `dtype="auto"` is float32 on a CPU and the checkpoint's own type elsewhere; `device="auto"` the first GPU if there
    is one. Weights are read without unpickling code. The processor of an original checkpoint without tokenizer files
    prepares pictures only. Raises `ValueError` naming the argument that is wrong.
    """
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    wanted = _dtype(dtype, chosen)
    raw = read_raw_config(pretrained)
    if is_original(raw):
        try:
            model, processor = load_original(
                resolve(pretrained), raw, None if isinstance(wanted, str) else wanted, chosen, attn_implementation
            )
        except ValueError as error:
            raise ValueError(f"pretrained: cannot load {pretrained!r}: {error}") from error
        check_model(model)
        return model.eval(), processor
    read_config(pretrained)
    try:
        model = LlavaForConditionalGeneration.from_pretrained(
            resolve(pretrained),
            dtype=wanted,
            attn_implementation=attn_implementation,
        )
        processor = AutoProcessor.from_pretrained(resolve(pretrained))
        # the resampling LLaVA-1.5 was evaluated with; torchvision's differs by up to 0.03 in a normalised pixel
        processor.image_processor = AutoImageProcessor.from_pretrained(resolve(pretrained), backend="pil")
    except (OSError, ImportError) as error:
        raise ValueError(f"pretrained: cannot load {pretrained!r}: {_first_line(error)}") from error
    check_model(model)
    processor.tokenizer.padding_side = "left"
    return model.eval().to(chosen), processor


def _dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: got {dtype!r}; known: auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
