"""Checkpoints of the original LLaVA code base, read into an unmodified transformers LLaVA.

The prompt needs a token that stands for the image, so the vocabulary grows as in the published conversions: `<image>`
and `<pad>` behind the last word, and rows up to a multiple of 64. A new row is the mean of the trained ones of its
matrix: its logit is the mean of theirs, which is never the largest, and `generate` is told to leave it out. (The
conversions draw both matrices' rows around the mean input embedding, whose logit has no such bound.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from finepruner_lmms.checkpoints.original_config import convert_config, tower_image_processor, warn_of_aspect_ratio
from finepruner_lmms.checkpoints.prompts import IMAGE, VICUNA_TEMPLATE
from finepruner_lmms.checkpoints.sentencepiece_tokenizer import read_sentencepiece
from finepruner_lmms.checkpoints.weights import Weights, fetch, list_names, read_json, read_shard
from finepruner_lmms.engine.parts import Parts

_PAD = "<pad>"
_MULTIPLE = 64
_IN_CHECKPOINT = "model.vision_tower.vision_tower.vision_model."
_IN_TOWER = "vision_model."
# buffers that older versions wrote, and the other half of a CLIP checkpoint
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")
_TEXT_SIDE = re.compile(r"^(text_model\.|text_projection|visual_projection|logit_scale)")


def load_original(
    pretrained: str, raw: dict[str, Any], dtype: torch.dtype | None, device: torch.device, attn_implementation: str
) -> tuple[LlavaForConditionalGeneration, Any]:
    """The model on `device` and its processor; `raw` is the checkpoint's config.json, `dtype` None its own type.

    One shard at a time is read, cast and moved; all names are checked before. Raises `ValueError` naming the files or
    tensors that are missing, damaged, unknown or of another shape.
    """
    config = convert_config(raw, pretrained)
    warn_of_aspect_ratio(raw, pretrained)
    folder = fetch(pretrained)
    tokenizer = _tokenizer(folder)
    vocabulary = Vocabulary.of(config, tokenizer)
    vocabulary.enter(config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn_implementation)
    model.generation_config = _generation_config(folder, config, vocabulary)
    _fill(model, Weights.find(folder), vocabulary, dtype or _stored_type(raw), device)
    pictures = tower_image_processor(config.mm_vision_tower)
    if tokenizer is None:
        return model, PicturesOnly(pictures, pretrained)
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )
    return model, processor


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


class PicturesOnly:
    """Stands for the processor of a checkpoint without a tokenizer: pictures can be prepared, text cannot."""

    def __init__(self, image_processor: Any, pretrained: str) -> None:
        self.image_processor = image_processor
        self._pretrained = pretrained

    @property
    def tokenizer(self) -> Any:
        """There is none."""
        self._refuse()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Text is part of what a processor takes."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"pretrained: {self._pretrained!r} holds no tokenizer, so it can be given token ids only; put its "
            "tokenizer.model there (LLaVA-1.5 has Vicuna's)"
        )


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of the checkpoint, or None if it has no files of one."""
    if (folder / "tokenizer.model").is_file():
        return read_sentencepiece(folder, padding_side="left")
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"tokenizer.json: cannot read the tokenizer in {str(folder)!r}: {error}") from error


def _generation_config(folder: Path, config: LlavaConfig, vocabulary: Vocabulary) -> GenerationConfig:
    """Where answers begin and end. How to sample is the caller's business: LLaVA is evaluated greedily."""
    file = folder / "generation_config.json"
    given = read_json(file) if file.is_file() else {}
    ids = {key: given.get(key, getattr(config.text_config, key)) for key in ("bos_token_id", "eos_token_id")}
    return GenerationConfig(**ids, pad_token_id=vocabulary.pad, suppress_tokens=vocabulary.never)


def _stored_type(raw: dict[str, Any]) -> torch.dtype:
    """The type that a checkpoint says its weights have."""
    found = getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype")), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"torch_dtype: got {raw.get('torch_dtype')!r} in config.json; give dtype as float16, bfloat16 or float32"
        )
    return found


# -- weights ----------------------------------------------------------------------------------------------------------

_Place = tuple[str, tuple[int, ...]]


def _fill(
    model: LlavaForConditionalGeneration,
    weights: Weights,
    vocabulary: Vocabulary,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Read every parameter of `model`, the tower's from a checkpoint of its own where `weights` have none."""
    places = _places(model, vocabulary)
    inside = any(name.startswith(_IN_CHECKPOINT) for name in weights.files)
    towers = {name: place for name, place in places.items() if name.startswith(_IN_CHECKPOINT)}
    own = places if inside else {name: place for name, place in places.items() if name not in towers}
    sources = [(weights, own)]
    if not inside:
        tower = Weights.find(fetch(model.config.mm_vision_tower))
        prefix = _IN_TOWER if any(name.startswith(_IN_TOWER) for name in tower.files) else ""
        sources.append((tower, {prefix + n.removeprefix(_IN_CHECKPOINT): place for n, place in towers.items()}))
    for source, wanted in sources:
        _check_names(source, wanted)
    grown = {name for name, _ in (places["model.embed_tokens.weight"], places["lm_head.weight"])}

    def ready(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, dtype, copy=True)
        return vocabulary.grow(tensor) if name in grown else tensor

    for source, wanted in sources:
        for file, names in source.shards().items():
            _read_into(model, file, {name: wanted[name] for name in names if name in wanted}, ready)
    _complete_projector(model, dtype, device)
    model.config.dtype = dtype
    model.to(device)  # what is not a parameter


def _places(model: LlavaForConditionalGeneration, vocabulary: Vocabulary) -> dict[str, _Place]:
    """Every name of the original code base, with the parameter's name here and its shape in the checkpoint."""
    parts = Parts.of(model)
    first, second = parts.projector
    owners: list[tuple[str, nn.Module]] = [
        (_IN_CHECKPOINT, parts.tower), ("model.", parts.decoder), ("lm_head.", parts.head),
    ]  # fmt: skip
    if model.config.projector_hidden_act == "linear":
        owners += [("model.mm_projector.", first)]
    else:
        owners += [("model.mm_projector.0.", first), ("model.mm_projector.2.", second)]
    names = {module: name for name, module in model.named_modules()}
    places = {}
    for prefix, owner in owners:
        for name, parameter in owner.named_parameters():
            places[prefix + name] = (f"{names[owner]}.{name}", tuple(parameter.shape))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        here, (_, width) = places[name]
        places[name] = (here, (vocabulary.trained, width))
    return places


def _check_names(weights: Weights, wanted: dict[str, _Place]) -> None:
    given = {name for name in weights.files if not (_COMPUTED.search(name) or _TEXT_SIDE.match(name))}
    missing, unknown = sorted(wanted.keys() - given), sorted(given - wanted.keys())
    problems = [f"lacks {list_names(missing)}"] if missing else []
    problems += [f"holds {list_names(unknown)}, which LLaVA-1.5 does not have"] if unknown else []
    if problems:
        raise ValueError(f"weights: {str(weights.folder)!r} {' and '.join(problems)}")


def _read_into(
    model: LlavaForConditionalGeneration, file: Path, wanted: dict[str, _Place], ready: Callable[[str, Tensor], Tensor]
) -> None:
    shard, loaded = read_shard(file), {}
    if missing := sorted(wanted.keys() - shard.keys()):
        raise ValueError(f"{file.name}: lacks {list_names(missing)}, which the index says it holds")
    for name, (here, shape) in wanted.items():
        tensor = shard.pop(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{file.name}: {name} is {list(tensor.shape)}; by config.json it is {list(shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{file.name}: {name} is {tensor.dtype}; quantized weights are not read")
        loaded[here] = ready(here, tensor)
    model.load_state_dict(loaded, strict=False, assign=True)


def _complete_projector(model: LlavaForConditionalGeneration, dtype: torch.dtype, device: torch.device) -> None:
    """Where the original has one layer, the second is the identity: exact in any type."""
    second = Parts.of(model).projector[1]
    if model.config.projector_hidden_act == "linear":
        width = model.config.text_config.hidden_size
        unit = {"weight": torch.eye(width, dtype=dtype, device=device)}
        second.load_state_dict(unit | {"bias": torch.zeros(width, dtype=dtype, device=device)}, assign=True)
