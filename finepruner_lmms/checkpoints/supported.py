"""Which models can be pruned, by their config.json alone."""

from __future__ import annotations

from typing import Any

from finepruner_lmms.errors import FieldError

# part of the configuration → what it is where the file is silent, and what can be pruned
_PARTS = {"vision_config": "clip_vision_model", "text_config": "llama"}
_WHY = {
    "vision_config": "other towers have no CLS token where the engine looks for one",
    "text_config": "the decoders of LLaVA-1.5 are Llamas",
}
# entry → the largest value that is not taken for a mistake: far above any model that exists
_MOST = {
    "num_hidden_layers": 1_000, "num_attention_heads": 1_000, "num_key_value_heads": 1_000, "head_dim": 10_000,
    "hidden_size": 1_000_000, "intermediate_size": 10_000_000, "vocab_size": 10_000_000,
    "image_size": 100_000, "patch_size": 100_000,
}  # fmt: skip
_MOST_TOKENS = 100_000


def check_sizes(given: dict[str, Any], part: str = "") -> None:
    """Raise `FieldError` naming the first size in `part` of a configuration that no model can have.

    Whether a size is a number at all is left to who reads it.
    """
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


def check_token(image_token: int, rows: int) -> None:
    """Raise `FieldError` where the placeholder of an image is no token of a vocabulary of so many rows."""
    if not 0 <= image_token < rows:
        problem = f"got {image_token}, but the vocabulary has {rows} rows"
        raise FieldError("image_token_index", problem, value=image_token)


def check_supported(raw: dict[str, Any]) -> None:
    """Raise `FieldError` naming the first entry of a Hugging Face config.json that makes it no LLaVA-1.5."""
    kind = raw.get("model_type")
    if kind != "llava":
        raise FieldError("model_type", f"got {kind!r}; only LLaVA-1.5 ('llava') can be pruned", value=kind)
    for part, known in _PARTS.items():
        given = raw.get(part, {})
        if not isinstance(given, dict):
            raise FieldError(part, f"got {given!r}; expected an object", value=given)
        if (kind := given.get("model_type", known)) != known:
            field = f"{part}.model_type"
            raise FieldError(field, f"got {kind!r}; only {known!r} is supported ({_WHY[part]})", value=kind)
        check_sizes(given, f"{part}.")
    layer = raw.get("vision_feature_layer", -2)
    if isinstance(layer, bool) or not isinstance(layer, int):
        problem = f"got {layer!r}; only the number of a single layer is supported"
        raise FieldError("vision_feature_layer", problem, value=layer)
