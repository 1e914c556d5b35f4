"""Which calls of `generate` are plain greedy decoding, so that rows of several methods can be decoded as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.generation_modes import setting

_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Greedy:
    """The most likely token, at most `max_new_tokens` times, up to one of `end_ids`; `padding_id` follows these."""

    max_new_tokens: int
    end_ids: tuple[int, ...]
    padding_id: int

    @classmethod
    def of(cls, model: LlavaForConditionalGeneration, generation: Mapping[str, Any]) -> Greedy:
        """As `generate` reads it from its arguments and the model's configuration, which `why_apart` has looked at."""
        end = setting(model, generation, "eos_token_id")
        ends = tuple(end) if isinstance(end, list | tuple) else () if end is None else (int(end),)
        padding = setting(model, generation, "pad_token_id")
        return cls(
            int(setting(model, generation, "max_new_tokens")),
            ends,
            int(padding) if padding is not None else ends[0] if ends else 0,
        )


def _more_than(limit: float) -> Callable[[Any], bool]:
    return lambda value: value is not None and value > limit


def _other_than(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value is not None and value not in values


# what makes `generate` do anything but take the most likely token up to the end of the text
_NOT_PLAIN: dict[str, Callable[[Any], bool]] = {
    "do_sample": bool,
    "num_beams": _more_than(1),
    "num_return_sequences": _more_than(1),
    "min_length": _more_than(0),
    "min_new_tokens": _more_than(0),
    "repetition_penalty": _other_than(1),
    "encoder_repetition_penalty": _other_than(1),
    "no_repeat_ngram_size": _more_than(0),
    "encoder_no_repeat_ngram_size": _more_than(0),
    "remove_invalid_values": bool,
    "renormalize_logits": bool,
    **dict.fromkeys(
        (
            "bad_words_ids",
            "sequence_bias",
            "prefix_allowed_tokens_fn",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "suppress_tokens",
            "begin_suppress_tokens",
            "watermarking_config",
            "stop_strings",
            "max_time",
            "logits_processor",
            "stopping_criteria",
            "streamer",
        ),
        lambda value: value is not None,
    ),
}
_READ = ("do_sample", "num_beams", "max_new_tokens", "eos_token_id", "pad_token_id", "generation_config")


def why_apart(model: LlavaForConditionalGeneration, generation: Mapping[str, Any]) -> str | None:
    """Why methods cannot answer together under these arguments of `generate`; None where they can."""
    for name, differs in _NOT_PLAIN.items():
        if differs(setting(model, generation, name)):
            return f"{name}={setting(model, generation, name)!r} is not plain greedy decoding"
    for name in generation:
        if name not in _READ and name not in _NOT_PLAIN:
            return f"{name!r} is not read where methods answer together"
    if setting(model, generation, "max_new_tokens") is None:
        return "max_new_tokens is not set"
    if (attention := model.config.get_text_config()._attn_implementation) not in _ATTENTION:
        return f"attention {attention!r} was not tested with it; {' and '.join(_ATTENTION)} were"
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        return "the model is spread over several devices"
    return None
