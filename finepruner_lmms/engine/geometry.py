"""The sizes of a model that a schedule depends on; read from its configuration, no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model that a schedule depends on."""

    num_layers: int
    num_heads: int
    num_visual_tokens: int
    image_token_id: int

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """Read from a `LlavaConfig`; no weights are needed."""
        vision, text = config.vision_config, config.text_config
        patches = (vision.image_size // vision.patch_size) ** 2
        with_cls = config.vision_feature_select_strategy == "full"
        return cls(text.num_hidden_layers, text.num_attention_heads, patches + with_cls, config.image_token_id)
