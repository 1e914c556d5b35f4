"""Which family a model belongs to, by its type; installed packages add families through an entry point."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.errors import FieldError, nearest, show

GROUP = "finepruner_lmms.families"
"""The entry point group in which a package names a subclass of `Family`."""
_HERE = "finepruner_lmms.engine.families"
_OWN = {
    "llava": "llava:Llava",
    "llava_next": "llava_next:LlavaNext",
    "llava_onevision": "llava_onevision:LlavaOnevision",
    "qwen2_5_vl": "qwen2_5_vl:Qwen25VL",
    "qwen3_vl": "qwen3_vl:Qwen3VL",
    "internvl": "internvl:InternVL",
}


def known_families() -> dict[str, EntryPoint]:
    """Ours, and those of installed packages, by the `model_type` that they serve."""
    own = {kind: EntryPoint(kind, f"{_HERE}.{place}", GROUP) for kind, place in _OWN.items()}
    more = {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.value)}
    return more | own


@functools.cache
def find_family(model_type: str) -> Family:
    """The family of a `model_type`. `FieldError` naming those that there are."""
    points = known_families()
    if model_type not in points:
        problem = f"got {show(model_type)}{nearest(str(model_type), points)}; can be pruned: {', '.join(points)}"
        raise FieldError("model_type", problem, value=model_type)
    point = points[model_type]
    module, _, name = point.value.partition(":")
    try:
        family = getattr(import_module(module), name)()
    except Exception as error:
        owner = point.dist.name if point.dist is not None else "finepruner_lmms"
        problem = f"family {point.name!r} ({point.value}) of {owner!r} cannot be loaded"
        raise FieldError("model_type", f"{problem}: {type(error).__name__}: {error}", value=model_type) from error
    if not isinstance(family, Family):
        raise FieldError("model_type", f"family {point.name!r} ({point.value}) is no subclass of Family")
    return family


def family_of(model: Any) -> Family:
    """The family of a model, checked to be one that can be pruned. `TypeError` or `FieldError` if it is not."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind is None:
        raise TypeError(f"model: got {type(model).__name__}; expected a model of transformers")
    family = find_family(kind)
    if type(model).__name__ != family.model_class and family.model_class not in {
        base.__name__ for base in type(model).__mro__
    }:
        raise TypeError(f"model: got {type(model).__name__}; expected transformers' {family.model_class}")
    family.check(config)
    return family
