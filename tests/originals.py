"""Small checkpoints in the format of the original LLaVA code base, in all the forms in which they are published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "llava_original"
TOWER = "model.vision_tower."
SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT:",
    "Answer the question using a single word or phrase. Is there a red star, or what color is the circle?",
    "What is in the image? How many people are there, and what do they hold in their hands?",
]


def weights() -> dict[str, Tensor]:
    """The recorded checkpoint's tensors."""
    return torch.load(GOLDEN / "checkpoint" / "pytorch_model.bin", weights_only=True)


def checkpoint(
    folder: Path,
    state: dict[str, Tensor] | None = None,
    *,
    shards: int = 1,
    form: str = "bin",
    tower: bool = True,
    tokenizer: bool = False,
    **changes: Any,
) -> Path:
    """A checkpoint in `folder`/checkpoint, its tower beside it. `changes`: entries of config.json (None: left out)."""
    target = folder / "checkpoint"
    target.mkdir(parents=True)
    state = dict(weights() if state is None else state)
    if not tower:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(TOWER)}
    if not (folder / "clip_tower").exists():
        shutil.copytree(GOLDEN / "clip_tower", folder / "clip_tower")
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text()) | changes
    if tokenizer:
        config["vocab_size"] = add_tokenizer(target)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            generator = torch.Generator().manual_seed(len(name))
            state[name] = torch.randn(config["vocab_size"], config["hidden_size"], generator=generator) * 0.3
    (target / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    names = sorted(state)
    stem, save = ("model", save_file) if form == "safetensors" else ("pytorch_model", torch.save)
    if shards == 1:
        save(state, target / f"{stem}.{form}")
        return target
    places = {name: f"{stem}-{1 + i * shards // len(names):05}-of-{shards:05}.{form}" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save({name: state[name].clone() for name in names if places[name] == file}, target / file)
    (target / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return target


def add_tokenizer(folder: Path) -> int:
    """A SentencePiece file of Llama's kind, with the settings of LLaVA-1.5; how many tokens it has."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_prefix=str(folder / "tokenizer"), vocab_size=400,
        model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
        minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return 400


def expected() -> dict[str, Tensor]:
    """What the original code recorded."""
    return load_file(GOLDEN / "expected.safetensors")
