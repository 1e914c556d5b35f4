"""The weights of an original checkpoint, read shard by shard into an empty transformers LLaVA."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.checkpoints.fetch import fetch_small, fetch_weights
from finepruner_lmms.checkpoints.vocabulary import Vocabulary
from finepruner_lmms.checkpoints.weights import Weights, read_shard
from finepruner_lmms.engine.loading_report import COMPUTED
from finepruner_lmms.engine.parts import Parts
from finepruner_lmms.errors import FieldError, list_names

_IN_CHECKPOINT = "model.vision_tower.vision_tower.vision_model."
_IN_TOWER = "vision_model."
# the other half of a CLIP checkpoint
_TEXT_SIDE = re.compile(r"^(text_model\.|text_projection|visual_projection|logit_scale)")

_Place = tuple[str, tuple[int, ...]]


def fill(
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
        name = model.config.mm_vision_tower
        folder = fetch_small(name)
        fetch_weights(name, folder)
        tower = Weights.find(folder)
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
    given = {name for name in weights.files if not (COMPUTED.search(name) or _TEXT_SIDE.match(name))}
    missing, unknown = sorted(wanted.keys() - given), sorted(given - wanted.keys())
    problems = [f"lacks {list_names(missing)}"] if missing else []
    problems += [f"holds {list_names(unknown)}, which LLaVA-1.5 does not have"] if unknown else []
    if problems:
        raise FieldError("weights", f"{str(weights.folder)!r} {' and '.join(problems)}", value=str(weights.folder))


def _read_into(
    model: LlavaForConditionalGeneration, file: Path, wanted: dict[str, _Place], ready: Callable[[str, Tensor], Tensor]
) -> None:
    shard, loaded = read_shard(file), {}
    if missing := sorted(wanted.keys() - shard.keys()):
        raise FieldError(file.name, f"lacks {list_names(missing)}, which the index says it holds")
    for name, (here, shape) in wanted.items():
        tensor = shard.pop(name)
        if tuple(tensor.shape) != shape:
            raise FieldError(file.name, f"{name} is {list(tensor.shape)}; by config.json it is {list(shape)}")
        if not tensor.is_floating_point():
            raise FieldError(file.name, f"{name} is {tensor.dtype}; quantized weights are not read")
        loaded[here] = ready(here, tensor)
    model.load_state_dict(loaded, strict=False, assign=True)


def _complete_projector(model: LlavaForConditionalGeneration, dtype: torch.dtype, device: torch.device) -> None:
    """Where the original has one layer, the second is the identity: exact in any type."""
    second = Parts.of(model).projector[1]
    if model.config.projector_hidden_act == "linear":
        width = model.config.text_config.hidden_size
        unit = {"weight": torch.eye(width, dtype=dtype, device=device)}
        second.load_state_dict(unit | {"bias": torch.zeros(width, dtype=dtype, device=device)}, assign=True)
