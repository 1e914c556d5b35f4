"""What a call that is pruned has to be: arguments by name, a model that is not compiled, a cache that may be short.

These say what is wrong with a call; the hooks of `engine.decoder_hooks` ask them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.cache_utils import Cache, DynamicLayer

from finepruner_lmms.engine.prompt_state import View
from finepruner_lmms.errors import FieldError

COMPILED = "is compiled, and compiled code may pass by the hooks that prune"
UNCOMPILED = "use the model as transformers loads it, without torch.compile"


@functools.cache
def _parameters(forward: Any) -> inspect.Signature:
    return inspect.signature(forward)


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name: some models pass some of them by position."""
    if not args:
        return dict(kwargs)
    names = list(_parameters(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def not_dropped(layer: int) -> FieldError:
    """The error of a prefill in which a drop did not take place."""
    return FieldError(
        "model",
        f"no token was dropped before decoder layer {layer}, because its hooks did not run: the model is compiled, or "
        "its layers were replaced",
        fix=UNCOMPILED,
    )


def check_not_compiled(modules: Sequence[nn.Module]) -> None:
    """Raise `FieldError` if one of the modules with hooks is compiled: its code may have been made without them."""
    for module in modules:
        # what `module.compile()` and `module.forward = torch.compile(module.forward)` leave behind
        called = getattr(module, "_compiled_call_impl", None)
        if called is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise FieldError("model", f"its {type(module).__name__} {COMPILED}", fix=UNCOMPILED)


def check_length(cache: Cache, layer: int, view: View) -> None:
    """Raise `FieldError` unless the cache of a layer holds what was put there under this `attach`."""
    if (length := cache.get_seq_length(layer)) != view.length:
        raise FieldError(
            "past_key_values",
            f"holds {length} tokens at layer {layer}, where pruning and decoding left {view.length}: it was changed "
            "meanwhile",
            fix="leave the cache to the model",
        )


def supported_cache(cache: Any) -> Cache:
    """The cache, if each of its layers may have a length of its own; else `FieldError`."""
    if cache is None:
        raise FieldError("use_cache", "pruning needs the key-value cache", fix="call the model with use_cache=True")
    plain = isinstance(cache, Cache) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if not plain or cache.offloading:
        raise FieldError(
            "past_key_values",
            f"a {type(cache).__name__} of this kind gives every layer the same length or keeps its keys elsewhere, "
            "which pruning cannot use",
            fix="pass none, or a DynamicCache",
        )
    return cache
