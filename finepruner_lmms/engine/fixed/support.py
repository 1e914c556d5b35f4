"""Which calls can run on fixed buffers; for the others, why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.fixed.shape import LONGEST
from finepruner_lmms.engine.generation_modes import setting

# read here, or of no effect on greedy decoding; whatever else is set asks for transformers' own loop
_READ = {
    "max_new_tokens",
    "max_length",  # max_new_tokens, which must be given, goes before it
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "use_cache",
    "cache_implementation",
    "output_logits",
    "return_dict_in_generate",
    "generation_config",
    "transformers_version",
    "disable_compile",
    "compile_config",
    *("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("length_penalty", "early_stopping", "diversity_penalty", "low_memory"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size", "assistant_ensemble_weight"),
}
# what leaves greedy decoding as it is, besides None and False
_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
}


def why_not(model: LlavaForConditionalGeneration, given: Mapping[str, Any], prompt: int) -> str | None:
    """Why a call of `generate` with the arguments `given`, for so long a prompt, runs eagerly; None if it does not.

    What the model itself has against it, its `Snapshot` says.
    """
    if setting(model, given, "do_sample"):
        return "tokens are drawn at random, which takes transformers' own loop"
    for source in (given, _values(given.get("generation_config")), vars(model.generation_config)):
        for name, value in source.items():
            if name.startswith("_") or name in _READ or value is None or value is False:
                continue
            if name not in _NEUTRAL or value != _NEUTRAL[name]:
                return f"{name}={value!r} takes transformers' own loop"
    if setting(model, given, "max_new_tokens") is None:
        return "max_new_tokens is not given, so how much room an answer needs is not known"
    if prompt + setting(model, given, "max_new_tokens") > LONGEST:
        return f"prompts and answers of more than {LONGEST} tokens are not recorded"
    return None


def _values(config: Any) -> Mapping[str, Any]:
    return {} if config is None else vars(config)
