"""What transformers' versions call the same thing: read here, and nowhere else.

transformers 5.24 renamed the key-value cache of layers, models and outputs from `past_key_values` to `cache`.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version
from torch import nn

OLDEST, NEWEST = "5.18.0", "5.24.0"
"""The engine's tests ran on these versions of transformers and on some between them."""

_COPIES_IMAGES = "5.20.0"
"""From this version on, beams of a row that shows several images see them in its order; before, they are shuffled."""
_CACHE_NAMES = ("cache", "past_key_values")


def find_cache(arguments: Mapping[str, Any]) -> Any:
    """The key-value cache among the arguments of a forward or of `generate`; None where there is none."""
    return next((arguments[name] for name in _CACHE_NAMES if arguments.get(name) is not None), None)


def cache_of_output(output: Any) -> Any:
    """The key-value cache in the output of a model; None where there is none."""
    # a deprecated name of an output warns when it is read, so the newer one comes first
    return next((value for name in _CACHE_NAMES if (value := getattr(output, name, None)) is not None), None)


def cache_keyword(module: nn.Module) -> str:
    """Under which name the forward of a decoder layer takes the key-value cache."""
    # a decorator that moves old names to new ones may hide the signature, but not the wrapped function
    parameters = inspect.signature(inspect.unwrap(type(module).forward)).parameters
    return next(name for name in _CACHE_NAMES if name in parameters)


def copies_images(version: str = transformers.__version__) -> bool:
    """Whether beams, or several answers, of a row that shows several images see these in its order."""
    return Version(version).release >= Version(_COPIES_IMAGES).release


@functools.cache
def warn_if_untested(version: str = transformers.__version__) -> None:
    """Warn, once, of a transformers on which no test of the engine ran."""
    # a development version of the next release is newer than any that was tested
    tested = Version(OLDEST).release[:2] <= Version(version).release[:2] <= Version(NEWEST).release[:2]
    if not tested:
        warnings.warn(
            f"transformers {version} was not tested with pruning, {OLDEST} to {NEWEST} were; before you rely on its "
            "answers, run tests/test_engine.py with it",
            stacklevel=3,
        )
