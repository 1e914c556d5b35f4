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
    layer = raw.get("vision_feature_layer", -2)
    if isinstance(layer, bool) or not isinstance(layer, int):
        problem = f"got {layer!r}; only the number of a single layer is supported"
        raise FieldError("vision_feature_layer", problem, value=layer)
