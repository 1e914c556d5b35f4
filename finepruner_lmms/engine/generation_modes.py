"""Which ways of generating cannot be combined with pruning, and refusing them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.versions import find_cache
from finepruner_lmms.errors import FieldError


def _given(value: Any) -> bool:
    return value is not None


def _on(value: Any) -> bool:
    return bool(value)


_ASSISTED = "assisted decoding verifies several tokens at once"
_SECOND = "it runs a second forward, of a prompt that is not the one that was pruned"
_OTHER_LOOP = "its decoding loop is other code, in which pruning was not tested"
_CONFIG = "image features are read as the model's configuration says; change it there"

_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "assistant_model": (_given, _ASSISTED),
    "prompt_lookup_num_tokens": (_given, _ASSISTED),
    "assistant_early_exit": (_given, _ASSISTED),
    "use_mtp": (_on, _ASSISTED),
    "guidance_scale": (lambda scale: scale not in (None, 1), _SECOND),
    "negative_prompt_ids": (_given, _SECOND),
    "negative_prompt_attention_mask": (_given, _SECOND),
    "penalty_alpha": (_on, "contrastive search runs a second forward, of candidates, on a copy of the cache"),
    "token_healing": (_on, _SECOND),
    "dola_layers": (_given, _OTHER_LOOP),
    "custom_generate": (_given, _OTHER_LOOP),
    "constraints": (_given, _OTHER_LOOP),
    "force_words_ids": (_given, _OTHER_LOOP),
    "num_beam_groups": (lambda groups: groups not in (None, 1), _OTHER_LOOP),
    "prefill_chunk_size": (_given, "chunked prefill never shows the whole prompt"),
    "labels": (_given, "the logits of a pruned prompt are fewer than its labels"),
    "inputs_embeds": (_given, "the visual tokens of a prompt are found by their placeholders in input_ids"),
    "position_ids": (_given, "positions follow from the attention mask"),
    "vision_feature_layer": (_given, _CONFIG),
    "vision_feature_select_strategy": (_given, _CONFIG),
    "image_sizes": (_given, _CONFIG),
}


def setting(model: Any, given: Mapping[str, Any], name: str) -> Any:
    """A setting of `generate` as transformers finds it: the argument, the given configuration, the model's own."""
    sources = (given.get("generation_config"), model.generation_config)
    values = (given.get(name), *(getattr(source, name, None) for source in sources))
    return next((value for value in values if value is not None), None)


def check_generation(model: Any, given: Mapping[str, Any]) -> None:
    """Raise `FieldError` where `generate` with the arguments `given` could not be pruned correctly."""
    media = family_of(model).media
    for name, (refused, reason) in _REFUSED.items():
        value = setting(model, given, name)
        if refused(value) and name not in media:
            raise FieldError(name, f"cannot be combined with pruning, because {reason}", value=value)
    implementation = setting(model, given, "cache_implementation")
    if implementation not in (None, "dynamic"):
        raise FieldError(
            "cache_implementation",
            f"{implementation!r} gives every layer the same length",
            value=implementation,
            fix="leave it out",
        )
    if setting(model, given, "use_cache") is False:
        raise FieldError("use_cache", "pruning needs the key-value cache", value=False, fix="leave it on")
    cache = find_cache(given)
    if cache is not None and cache.get_seq_length():
        raise FieldError("past_key_values", "holds tokens already; pruning starts from an empty cache")


@contextmanager
def checked_generation(model: Any, tell: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """Inside, `model.generate` refuses what cannot be pruned, and `tell` gets its arguments before it runs.

    A hook on the model never sees them: images are encoded, and what describes them is gone, before the model runs.
    """
    own, run = vars(model).get("generate"), model.generate
    signature = inspect.signature(run)

    @functools.wraps(run)
    def generate(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind_partial(*args, **kwargs).arguments
        more = arguments.pop("kwargs", {})
        check_generation(model, arguments | more)
        tell(arguments | more)
        return run(*args, **kwargs)

    model.generate = generate
    try:
        yield
    finally:
        if own is None:
            del model.generate
        else:
            model.generate = own
