"""How a checkpoint answers where nobody says otherwise: greedily, with the cache, to its end token.

LLaVA is evaluated greedily. What else a checkpoint's generation_config.json asks for (sampling, penalties, least
lengths, forbidden or forced words) would change answers that the task did not ask to change, so it is named and left
out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from loguru import logger
from transformers import GenerationConfig, LlavaConfig

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LENGTHS = ("max_new_tokens", "max_length")
# what changes no answer
_SILENT = {"transformers_version", "return_dict_in_generate", "suppress_tokens", *_IDS, *_LENGTHS}
# values that mean the same as none
_NEUTRAL = {
    "use_cache": True, "temperature": 1, "top_k": 50, "top_p": 1, "typical_p": 1, "repetition_penalty": 1,
    "encoder_repetition_penalty": 1, "length_penalty": 1, "num_beams": 1, "num_beam_groups": 1,
    "num_return_sequences": 1,
}  # fmt: skip


def greedy_config(
    given: dict[str, Any], config: LlavaConfig, *, pad: int | None, no_words: Collection[int], name: str
) -> GenerationConfig:
    """The generation config of a checkpoint `name` whose generation_config.json says `given`.

    Where answers begin, end and how long they may be is taken from it, else from `config`. Of `suppress_tokens` only
    `no_words` stay: placeholders, padding, and rows of the vocabulary that no word has. Says what else is left out.
    """
    left_out = [f"{key}={value!r}" for key, value in sorted(given.items()) if _changes_answers(key, value)]
    words = set(given.get("suppress_tokens") or ()) - set(no_words)
    left_out += [f"suppress_tokens={sorted(words)!r}"] if words else []
    if left_out:
        logger.warning(
            f"{name!r}: generation_config.json asks for {', '.join(left_out)}; left out: answers are greedy, with the "
            "key-value cache, and as the task says"
        )
    kept = {key: given[key] for key in _LENGTHS if given.get(key) is not None}
    ids = {key: given.get(key, getattr(config.text_config, key, None)) for key in _IDS}
    if pad is not None:
        ids["pad_token_id"] = pad
    suppressed = sorted(set(given.get("suppress_tokens") or ()) & set(no_words))
    return GenerationConfig(**ids, **kept, suppress_tokens=suppressed or None, use_cache=True)


def _changes_answers(key: str, value: Any) -> bool:
    if key in _SILENT or key.startswith(("_", "output_")) or value is None:
        return False
    if key in _NEUTRAL:
        return bool(value != _NEUTRAL[key])
    return bool(value)  # False, 0 and empty lists ask for nothing
