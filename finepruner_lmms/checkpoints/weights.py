"""Reading the weights in a folder, shard by shard, without unpickling code."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finepruner_lmms.checkpoints.shape import ModelShape
from finepruner_lmms.engine.loading_report import COMPUTED
from finepruner_lmms.errors import FieldError, first_line, list_names
from finepruner_lmms.files import load_object

# a model may share matrices, and a small one costs nothing
_FACTOR, _SMALL = 2, 200_000_000
FORMS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""One file or the index of several, in the order in which they are looked for (as transformers does)."""


@dataclass(frozen=True)
class Weights:
    """The weights in a folder: in which file each tensor is."""

    folder: Path
    files: dict[str, Path]

    @classmethod
    def find(cls, folder: Path) -> Weights:
        """Read the names of all tensors. `FieldError` naming what is missing, before any tensor is read."""
        for single, index in FORMS:
            if (folder / single).is_file():
                return cls(folder, dict.fromkeys(_floating(folder / single), folder / single))
            if (folder / index).is_file():
                files = {name: folder / shard for name, shard in weight_map(folder / index).items()}
                missing = sorted({file.name for file in files.values() if not file.is_file()})
                if missing:
                    problem = f"{index} names {list_names(missing)}, not there in {str(folder)!r}"
                    raise FieldError("weights", problem, value=str(folder))
                return cls(folder, files)
        known = ", ".join(name for form in FORMS for name in form)
        raise FieldError("weights", f"{str(folder)!r} holds none of {known}", value=str(folder))

    def shards(self) -> dict[Path, set[str]]:
        """The files, and which tensors each has to hold."""
        found: dict[Path, set[str]] = {}
        for name, file in self.files.items():
            found.setdefault(file, set()).add(name)
        return found

    def check(self, *, quantized: bool = False) -> None:
        """Open every file, reading no tensor. `FieldError` naming a file that is damaged or lacks what it should hold.

        Unless the checkpoint is `quantized`, weights that are whole numbers are refused too.
        """
        for file, names in self.shards().items():
            floating = _floating(file)
            if missing := sorted(names - floating.keys()):
                raise FieldError(file.name, f"lacks {list_names(missing)}, which the index says it holds")
            whole = sorted(name for name in names if not (floating[name] or COMPUTED.search(name)))
            if whole and not quantized:
                raise FieldError(
                    file.name,
                    f"the weights {list_names(whole)} are whole numbers",
                    fix="quantized weights are not read",
                )


def check_size(described: int, weights: Weights) -> None:
    """Raise `FieldError` where a config.json describes a far larger model, of so many numbers, than the weights are of.

    What weights lack is made up, in memory, before anybody can say that it is missing.
    """
    held = sum(map(_elements, weights.shards()))
    if described > _FACTOR * held + _SMALL:
        problem = f"describes a model of about {described:,} numbers, but the weights hold {held:,}"
        fix = "put the config.json there that came with the weights"
        raise FieldError("config.json", problem, value=described, fix=fix)


def parameters(shape: ModelShape) -> int:
    """About how many numbers a model of these sizes has: its large matrices."""
    text, vision = shape.text_config, shape.vision_config
    attention = 2 * text.hidden_size * text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
    decoder = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    layer = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    return decoder + text.vocab_size * text.hidden_size + vision.num_hidden_layers * layer


def _elements(file: Path) -> int:
    """How many numbers a file of weights holds; none of them is read."""
    if file.suffix != ".safetensors":
        return sum(tensor.numel() for tensor in read_shard(file).values())
    try:
        with safe_open(file, framework="pt") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error


def read_shard(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped into memory where its format allows, so that reading copies nothing.

    Nothing but tensors is read: a file that asks for more when unpickled, that is damaged or cut short, is a
    `FieldError` naming it.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise FieldError(
                file.name,
                f"refused, nothing was run: besides tensors, {str(file)!r} asks for {asked[1]} when it is opened",
                value=str(file),
                fix="fetch the checkpoint from a source you trust",
            ) from error
        raise FieldError(
            file.name,
            "damaged or cut short, or not a file of tensors",
            value=str(file),
            fix=f"fetch {str(file)!r} again",
        ) from error
    except (OSError, RuntimeError, EOFError, KeyError, SafetensorError) as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FieldError(file.name, f"{str(file)!r} holds something else than named tensors", value=str(file))
    return content


def weight_map(index: Path) -> dict[str, str]:
    """What an index says: tensor names to files beside it. `FieldError` if it says something else."""
    found = load_object(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise FieldError(index.name, f"{str(index)!r} has no 'weight_map' of tensor names to files", value=str(index))
    for shard in found.values():
        if Path(shard).name != shard:
            raise FieldError(index.name, f"weight_map names {shard!r}, which is not a file beside it", value=shard)
    return found


def _floating(file: Path) -> dict[str, bool]:
    """The tensors of a file, and whether each holds floating-point numbers; none of them is read."""
    if file.suffix != ".safetensors":
        return {name: tensor.is_floating_point() for name, tensor in read_shard(file).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: "F" in opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> FieldError:
    return FieldError(
        file.name,
        "damaged or cut short",
        value=str(file),
        fix=f"fetch {str(file)!r} again ({first_line(error)})",
    )
