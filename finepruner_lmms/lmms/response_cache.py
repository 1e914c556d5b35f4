"""Telling lmms-eval's response cache what our answers depend on.

The cache keys an answer by the model's name and its `model_args` as typed. After an upgrade of this package, or when
a checkpoint folder is written anew, the same words would fetch the old answers. `identify` adds what is missing to
the model's side of the key, for our model only.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Protocol

from lmms_eval import evaluator

from finepruner_lmms.lmms.names import ANY, LLAVA

_NAMES = (LLAVA, ANY)


class Identified(Protocol):
    """A model that can say what its answers depend on."""

    @property
    def identity(self) -> str:
        """One line, the same for the same answers."""


_current: weakref.ref[Any] | None = None


def identify(model: Identified) -> None:
    """Make the cache of the coming evaluations by model name depend on `model.identity`."""
    global _current
    _current = weakref.ref(model)
    if getattr(evaluator.ResponseCache.create, "identifies_finepruner", False):
        return
    create = evaluator.ResponseCache.create

    @functools.wraps(create)
    def create_identified(cache_root: str, *, model: Any = "", **arguments: Any) -> Any:
        known = _current() if _current is not None else None
        if isinstance(model, str) and model in _NAMES and known is not None:
            model = f"{model}|{known.identity}"
        return create(cache_root, model=model, **arguments)

    create_identified.identifies_finepruner = True  # type: ignore[attr-defined]
    evaluator.ResponseCache.create = create_identified
