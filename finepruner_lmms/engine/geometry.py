"""The sizes of a model that a schedule depends on; read from its configuration, no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finepruner_lmms.engine.families.registry import find_family


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model that a schedule depends on.

    `num_visual_tokens` is N of every image; where images differ (`varies`), the most that papers count of one.
    """

    num_layers: int
    num_heads: int
    num_visual_tokens: int
    image_token_id: int
    varies: bool = False

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """Read from a configuration of transformers, or from what holds its sizes by the same names."""
        family, text = find_family(getattr(config, "model_type", "llava")), config.text_config
        count = family.num_visual_tokens(config)
        most = family.most_visual_tokens(config) if count is None else count
        return cls(text.num_hidden_layers, text.num_attention_heads, most, config.image_token_id, count is None)
