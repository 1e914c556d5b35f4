"""Loading a model: a checkpoint of either format (hub id or folder), or the small one that ships with the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from finepruner_lmms.checkpoints.configuration import check_pruner, naming, read_geometry, read_raw_config
from finepruner_lmms.checkpoints.fetch import resolve
from finepruner_lmms.checkpoints.hugging_face import HuggingFaceCheckpoint, hugging_face_config
from finepruner_lmms.checkpoints.original import OriginalCheckpoint
from finepruner_lmms.checkpoints.original_config import convert_config, is_original
from finepruner_lmms.checkpoints.processor import PicturesOnly
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.keywords import remember_tokenizer
from finepruner_lmms.errors import FieldError, check_choice

__all__ = [
    "Checkpoint",
    "check_pruner",
    "choose_device",
    "load_model",
    "open_checkpoint",
    "read_config",
    "read_geometry",
    "read_model",
    "read_raw_config",
    "resolve",
]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Checkpoint(Protocol):
    """A checkpoint of either format, all but its weights read."""

    @property
    def config(self) -> Any:
        """As transformers has it."""

    @property
    def processor(self) -> Any:
        """Left padding; pictures only where the checkpoint has no tokenizer."""

    def model(self, dtype: torch.dtype | None, device: torch.device, attn_implementation: str) -> Any:
        """Read the weights, each to `device` at once; `dtype` None is the checkpoint's own type."""


def read_config(pretrained: str) -> Any:
    """The configuration of a checkpoint, without its weights. `FieldError` if it is of no family that can be pruned."""
    raw = read_raw_config(pretrained)
    with naming("cannot prune", pretrained):
        return convert_config(raw, resolve(pretrained)) if is_original(raw) else hugging_face_config(raw)


def open_checkpoint(pretrained: str) -> Checkpoint:
    """Configuration and processor of a checkpoint. `FieldError` naming what is wrong with it; no weights are read."""
    raw = read_raw_config(pretrained)
    kind: Callable[[str, dict[str, Any]], Checkpoint]
    kind = OriginalCheckpoint.open if is_original(raw) else HuggingFaceCheckpoint.open
    with naming("cannot load", pretrained):
        return kind(resolve(pretrained), raw)


def read_model(
    checkpoint: Checkpoint,
    pretrained: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str = "sdpa",
    device_map: str | None = None,
) -> Any:
    """The model of an open checkpoint, ready for inference; the arguments are those of `load_model`."""
    chosen = choose_device(device)
    wanted = _dtype(dtype, chosen)
    if device_map is not None:
        _check_map(device_map, device, checkpoint)
    with naming("cannot load", pretrained):
        if device_map is not None and isinstance(checkpoint, HuggingFaceCheckpoint):
            model = checkpoint.model(wanted, device_map, attn_implementation)
        else:
            model = checkpoint.model(wanted, chosen, attn_implementation)
    family_of(model)
    return model.eval()


def load_model(
    pretrained: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn_implementation: str = "sdpa",
    device_map: str | None = None,
) -> tuple[Any, Any]:
    """The model, ready for inference, and its processor (left padding).

    `pretrained` is a hub id or a folder, of a Hugging Face model of any known family (docs/models.md) or of LLaVA's
    original code base, or `demo`.
    `dtype="auto"` is float32 on a CPU and the checkpoint's own type elsewhere; `device="auto"` the first GPU if there
    is one, to which each tensor is read at once; `device_map="auto"` instead spreads the layers of a model that is
    larger than one GPU over all of them (Hugging Face layout only, needs accelerate). Weights are read without
    unpickling code. The model answers greedily unless it is told otherwise, whatever the checkpoint's
    generation_config.json says. The processor of a checkpoint without tokenizer files prepares pictures only. Raises
    `FieldError` naming the argument that is wrong, and the file or the weights.
    """
    checkpoint = open_checkpoint(pretrained)
    model = read_model(checkpoint, pretrained, dtype, device, attn_implementation, device_map)
    processor = checkpoint.processor
    if not isinstance(processor, PicturesOnly):
        remember_tokenizer(model, getattr(processor, "tokenizer", None))
    return model, processor


def choose_device(device: str | torch.device) -> torch.device:
    """The device meant by a name, with its number; `auto` is the first GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise FieldError(
            "device", f"got {device!r}; expected auto, cpu, cuda or cuda:<number>", value=device
        ) from error
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        problem = f"got {str(device)!r}, but PyTorch sees {f'{count} GPUs' if count != 1 else 'one GPU'} here"
        raise FieldError("device", problem, value=device, fix="use cpu" if not count else f"at most cuda:{count - 1}")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return chosen


def _check_map(device_map: str, device: str | torch.device, checkpoint: Checkpoint) -> None:
    """Raise `FieldError` where the layers of a checkpoint cannot be spread as asked."""
    check_choice("device_map", device_map, ["auto"])
    if device != "auto":
        raise FieldError(
            "device_map", f"got {device_map!r} with device={str(device)!r}; each says where weights go",
            value=device_map, fix="give one of them",
        )  # fmt: skip
    if not isinstance(checkpoint, HuggingFaceCheckpoint):
        problem = f"got {device_map!r}, but checkpoints of the original code base are read to one device"
        raise FieldError("device_map", problem, value=device_map, fix="take the checkpoint in Hugging Face's layout")


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """The type that is wanted; None for the checkpoint's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    check_choice("dtype", dtype, ["auto", *_DTYPES])
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    return _DTYPES[dtype]
