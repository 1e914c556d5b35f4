"""Small checkpoints in the format of transformers, whole and damaged in the ways in which they are met."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from originals import GOLDEN, checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.prompts import vicuna_v1

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def saved(folder: Path) -> Path:
    """A conversion of the recorded original checkpoint, with a tokenizer: 4 layers, 16 visual tokens."""
    original = checkpoint(folder / "original", tokenizer=True)
    model, processor = fp.load_model(str(original))
    model.save_pretrained(folder / "whole")
    processor.save_pretrained(folder / "whole")
    return folder / "whole"


def change_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Apply `change` to the object in a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Apply `change` to the tensors of a checkpoint in one file."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def shard(folder: Path, form: str = "safetensors") -> list[Path]:
    """Split the weights into three files with an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, save = ("model", save_file) if form == "safetensors" else ("pytorch_model", torch.save)
    names = sorted(state)
    places = {name: f"{stem}-{1 + i * 3 // len(names):05}-of-00003.{form}" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save({name: state[name].clone() for name in names if places[name] == file}, folder / file)
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return [folder / file for file in sorted(set(places.values()))]


def asked(model: Any, processor: Any, question: str = "Is there a red star?") -> dict[str, Tensor]:
    """The inputs of a question about the recorded picture."""
    text = vicuna_v1(question, True)
    return dict(processor(text=text, images=Image.open(GOLDEN / "image.png"), return_tensors="pt"))


def greedy(model: Any, inputs: dict[str, Tensor], tokens: int = 12, **options: Any) -> list[int]:
    """Answer without pruning."""
    vanilla = fp.build_pruner("vanilla")
    return fp.generate(model, vanilla, inputs, max_new_tokens=tokens, **options).sequences[0].tolist()
