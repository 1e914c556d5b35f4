"""Which models can be pruned, by their config.json alone."""

from __future__ import annotations

import math
from typing import Any

from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError, show

# entry → the largest value that is not taken for a mistake: far above any model that exists
_MOST = {
    "depth": 1_000, "num_heads": 1_000,
    "num_hidden_layers": 1_000, "num_attention_heads": 1_000, "num_key_value_heads": 1_000, "head_dim": 10_000,
    "hidden_size": 1_000_000, "intermediate_size": 10_000_000, "vocab_size": 10_000_000,
    "image_size": 100_000, "patch_size": 100_000, "projection_dim": 1_000_000, "max_position_embeddings": 1_000_000_000,
    "num_channels": 3, "image_seq_length": 100_000,
}  # fmt: skip
_EPSILONS = ("rms_norm_eps", "layer_norm_eps")
_MOST_TOKENS = 100_000


def check_sizes(given: dict[str, Any], part: str = "") -> None:
    """Raise `FieldError` naming the first number in `part` of a configuration that no model can have.

    Whether a size is a number at all is left to who reads it.
    """
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FieldError(f"{part}{name}", f"got {value}; expected a finite number", value=value)
        if name in _EPSILONS and type(value) in (int, float) and not 0 < value < 1:
            raise FieldError(f"{part}{name}", f"got {value}; expected a number between 0 and 1", value=value)
        if name == "attention_dropout" and type(value) in (int, float) and not 0 <= value < 1:
            raise FieldError(f"{part}{name}", f"got {value}; expected 0 to below 1", value=value)
    for name, most in _MOST.items():
        value = given.get(name)
        if type(value) is int and not 1 <= value <= most:
            raise FieldError(f"{part}{name}", f"got {value}; expected 1 to {most:,}", value=value)


def check_tokens(image_size: Any, patch_size: Any) -> None:
    """Raise `FieldError` where pictures of this size do not give some visual tokens each."""
    for name, value in (("image_size", image_size), ("patch_size", patch_size)):
        if type(value) is not int:
            raise FieldError(f"vision_config.{name}", f"got {value!r}; expected the side of a square", value=value)
    if not 1 <= (tokens := (image_size // patch_size) ** 2) <= _MOST_TOKENS:
        problem = f"got {image_size} with patch_size {patch_size}, which makes {tokens} visual tokens of an image"
        raise FieldError("vision_config.image_size", f"{problem}; expected 1 to {_MOST_TOKENS:,}", value=image_size)


def check_token(image_token: int, rows: int, field: str = "image_token_index") -> None:
    """Raise `FieldError` where the placeholder of an image is no token of a vocabulary of so many rows."""
    if not 0 <= image_token < rows:
        problem = f"got {image_token}, but the vocabulary has {rows} rows"
        raise FieldError(field, problem, value=image_token)


def check_code(given: dict[str, Any], file: str) -> None:
    """Raise `FieldError` where a file of a checkpoint asks for Python code of its own, which is never run.

    What the standard classes of transformers would make of such a checkpoint is another model.
    """
    for part in (given, *(value for value in given.values() if isinstance(value, dict))):
        asked = part.get("auto_map")
        if asked:
            raise FieldError(
                file,
                f"refused, nothing was run: auto_map asks for code of the checkpoint's own, {show(asked)}",
                value=asked,
                fix="take a checkpoint of transformers' own LLaVA, or delete the entry if this is one",
            )


def check_layer(layer: int, num_layers: int, field: str = "vision_feature_layer") -> None:
    """Raise `FieldError` where the vision tower has no such layer: its input is 0, its last output `num_layers`."""
    if not -num_layers - 1 <= layer <= num_layers:
        problem = f"got {layer}, but the vision tower has {num_layers} layers"
        raise FieldError(field, f"{problem}; expected {-num_layers - 1} to {num_layers}", value=layer)


def check_supported(raw: dict[str, Any]) -> Family:
    """The family of a Hugging Face config.json. `FieldError` naming the first entry with which it cannot be pruned."""
    check_code(raw, "config.json")
    kind = raw.get("model_type")
    family = find_family(kind if isinstance(kind, str) else show(kind))
    for part, known in (("vision_config", family.towers), ("text_config", family.decoders)):
        given = raw.get(part, {})
        if not isinstance(given, dict):
            raise FieldError(part, f"got {given!r}; expected an object", value=given)
        if known and (own := given.get("model_type")) is not None and own not in known:
            field, names = f"{part}.model_type", " or ".join(map(repr, sorted(known)))
            raise FieldError(field, f"got {own!r}; {family.title} is supported with {names}", value=own)
        check_sizes(given, f"{part}.")
    check_sizes(raw)
    layer = raw.get("vision_feature_layer", -2)
    if isinstance(layer, bool) or not isinstance(layer, int):
        problem = f"got {layer!r}; only the number of a single layer is supported"
        raise FieldError("vision_feature_layer", problem, value=layer)
    return family
