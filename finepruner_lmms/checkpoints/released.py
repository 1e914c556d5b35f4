"""Sizes of checkpoints whose studies can be planned before they are fetched: what their config.json says.

They are facts about files that never change. What is run reads the file itself.
"""

from __future__ import annotations

from typing import Any

_LLAVA_15: dict[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "torch_dtype": "float16",
}
_VICUNA_7B: dict[str, Any] = {"model_type": "llama", "vocab_size": 32064}
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
RELEASED: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": _LLAVA_15 | {"text_config": _VICUNA_7B},
    "llava-hf/llava-1.5-13b-hf": _LLAVA_15 | {"text_config": _VICUNA_13B},
}
"""By hub id; entries that are not here are those that transformers takes instead, as in the files themselves."""
