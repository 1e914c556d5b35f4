"""The sizes of a LLaVA by its config.json, as transformers would read them, without loading transformers.

A config.json may leave entries out: `VISION`, `TEXT` and `WHOLE` hold what transformers takes instead, and of which
type each entry is. What is not as plain as that is none of this module's business: the readers return None, and
transformers is asked, whose verdict and words count. A test compares the tables with transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from finepruner_lmms.checkpoints.supported import check_layer, check_tokens

_DTYPES = (None, "float16", "bfloat16", "float32")
_Entries = dict[str, tuple[Any, Callable[[Any], bool]]]
T = TypeVar("T")


@dataclass(frozen=True)
class VisionShape:
    """The vision tower's sizes, by the names of a `CLIPVisionConfig`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int


@dataclass(frozen=True)
class TextShape:
    """The decoder's sizes, by the names of a `LlamaConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes, by the names of a `LlavaConfig`, so that what reads one of these reads the other.

    `mm_vision_tower` is the tower's name where the checkpoint is of the original code base.
    """

    vision_config: VisionShape
    text_config: TextShape
    image_token_id: int
    vision_feature_select_strategy: str
    mm_vision_tower: str | None = None

    def __post_init__(self) -> None:
        check_tokens(self.vision_config.image_size, self.vision_config.patch_size)

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Of a `LlavaConfig`."""
        return cls(
            _take(VisionShape, vars(config.vision_config)),
            _take(TextShape, vars(config.text_config)),
            config.image_token_id,
            config.vision_feature_select_strategy,
            getattr(config, "mm_vision_tower", None),
        )


def _is(*types: type) -> Callable[[Any], bool]:
    """Exactly of one of these types: True is no number, and a number is no float."""
    return lambda value: type(value) in types


def _plain_rope(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and set(value) == {"rope_theta", "rope_type"}
        and value["rope_type"] == "default"
        and type(value["rope_theta"]) in (int, float)
    )


_ACTIVATIONS = ("gelu", "quick_gelu", "silu", "linear")
_NONE = type(None)
_SIZE, _TEXT, _FLAG, _ID = _is(int), _is(str), _is(bool), _is(int, _NONE)
# those that CLIPs and Llamas have; transformers is asked about others
_ACTIVATION = _ACTIVATIONS.__contains__
# what any configuration may say, and none of its sizes depends on
_COMMON: _Entries = {
    "transformers_version": (None, _is(str, _NONE)),
    "architectures": (None, lambda value: value is None or (type(value) is list and all(map(_TEXT, value)))),
    "output_hidden_states": (False, _FLAG),
    "return_dict": (True, _FLAG),
    "dtype": (None, lambda value: value in _DTYPES),
    "chunk_size_feed_forward": (0, _SIZE),
    "is_encoder_decoder": (False, _FLAG),
}
VISION: _Entries = {
    "hidden_size": (768, _SIZE),
    "intermediate_size": (3072, _SIZE),
    "projection_dim": (512, _SIZE),
    "num_hidden_layers": (12, _SIZE),
    "num_attention_heads": (12, _SIZE),
    "num_channels": (3, _SIZE),
    "image_size": (224, _SIZE),
    "patch_size": (32, _SIZE),
    "hidden_act": ("quick_gelu", _ACTIVATION),
    "layer_norm_eps": (1e-5, _is(float)),
    "attention_dropout": (0.0, _is(int, float, _NONE)),
    "initializer_range": (0.02, _is(float)),
    "initializer_factor": (1.0, _is(float)),
}
WHOLE_TOWER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
"""The tower of a LLaVA whose config.json has no `vision_config` at all."""
TEXT: _Entries = {
    "vocab_size": (32000, _SIZE),
    "hidden_size": (4096, _SIZE),
    "intermediate_size": (11008, _SIZE),
    "num_hidden_layers": (32, _SIZE),
    "num_attention_heads": (32, _SIZE),
    "num_key_value_heads": (None, _ID),
    "hidden_act": ("silu", _ACTIVATION),
    "max_position_embeddings": (2048, _SIZE),
    "initializer_range": (0.02, lambda value: type(value) is float and 0 <= value <= 1),
    "rms_norm_eps": (1e-6, _is(float)),
    "use_cache": (True, _FLAG),
    "pad_token_id": (None, _ID),
    "bos_token_id": (1, _ID),
    "eos_token_id": (2, _ID),
    "pretraining_tp": (1, _ID),
    "tie_word_embeddings": (False, _FLAG),
    "rope_parameters": (None, _plain_rope),
    "attention_bias": (False, _FLAG),
    "attention_dropout": (0.0, _is(int, float, _NONE)),
    "mlp_bias": (False, _FLAG),
    "head_dim": (None, _ID),
}
WHOLE: _Entries = {
    "image_token_index": (32000, _SIZE),
    "image_seq_length": (576, _SIZE),
    "projector_hidden_act": ("gelu", _ACTIVATION),
    "vision_feature_select_strategy": ("default", lambda value: value in ("default", "full")),
    "vision_feature_layer": (-2, _SIZE),
    "multimodal_projector_bias": (True, _FLAG),
    "tie_word_embeddings": (False, _FLAG),
}
# names that checkpoints carry and transformers has no field for: of older versions, or read by nobody
_OLDER: _Entries = {
    "model_type": (None, _TEXT),
    "_name_or_path": (None, _TEXT),
    "torch_dtype": (None, lambda value: value in _DTYPES),
    "ignore_index": (None, _SIZE),
    "pad_token_id": (None, _ID),
    "vocab_size": (None, _SIZE),  # of the tower of LLaVA-1.5, which has no vocabulary
    "rope_theta": (None, _is(int, float)),
    "rope_scaling": (None, _is(_NONE)),
}


def read_plain(raw: dict[str, Any]) -> ModelShape | None:
    """Of a Hugging Face config.json that `check_supported` has passed; None where transformers has to say."""
    parts = {"vision_config", "text_config"}
    whole = _fill({name: value for name, value in raw.items() if name not in parts}, WHOLE)
    vision, text = plain_vision(raw.get("vision_config", WHOLE_TOWER)), plain_text(raw.get("text_config", {}))
    if whole is None or vision is None or text is None:
        return None
    check_layer(whole["vision_feature_layer"], vision.num_hidden_layers)
    return ModelShape(vision, text, whole["image_token_index"], whole["vision_feature_select_strategy"])


def plain_vision(raw: dict[str, Any]) -> VisionShape | None:
    """Of the entries of a `CLIPVisionConfig`."""
    found = _fill(raw, VISION)
    if found is None or found["hidden_size"] % found["num_attention_heads"]:
        return None
    return _take(VisionShape, found)


def plain_text(raw: dict[str, Any]) -> TextShape | None:
    """Of the entries of a `LlamaConfig`."""
    found = _fill(raw, TEXT)
    if found is None or found["hidden_size"] % found["num_attention_heads"]:
        return None
    heads = found["num_attention_heads"]
    if found["head_dim"] is None:
        found["head_dim"] = found["hidden_size"] // heads
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = heads
    # rotation turns pairs; transformers lets the smallest heads pass
    return None if found["head_dim"] > 4 and found["head_dim"] % 2 else _take(TextShape, found)


def _fill(raw: dict[str, Any], entries: _Entries) -> dict[str, Any] | None:
    """Every entry, given or by default; None if one is unknown or not of its type."""
    known = {**_OLDER, **_COMMON, **entries}
    if any(name not in known or not known[name][1](value) for name, value in raw.items()):
        return None
    return {name: default for name, (default, _) in entries.items()} | raw


def _take(kind: type[T], values: dict[str, Any]) -> T:
    return kind(**{f.name: values[f.name] for f in fields(kind)})  # type: ignore[arg-type]  # a dataclass
