"""Methods by name: registration, and building a pruner from its name and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, VisionPruner
from finepruner_lmms.pruners.chain import Chain

P = TypeVar("P", bound=type[Pruner])
_METHODS: dict[str, type[Pruner]] = {}
_ALIASES: dict[str, str] = {}


def register(name: str, *aliases: str) -> Callable[[P], P]:
    """Make a pruner class known by `name` (and `aliases`) to `build_pruner`, lmms-eval and matrix files."""

    def add(cls: P) -> P:
        for taken in (name, *aliases):
            owner = _METHODS.get(_ALIASES.get(taken, taken))
            if owner is not None and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
                where = f"{owner.__module__}.{owner.__qualname__}"
                raise ValueError(f"method: the name {taken!r} belongs to {where} already; choose another")
        cls.name = name
        _METHODS[name] = cls
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return add


def known_methods() -> list[str]:
    """The sorted names of all methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Pruner]:
    """The class registered as `name` or as one of its aliases; `ValueError` if there is none."""
    resolved = _ALIASES.get(name, name)
    if resolved not in _METHODS:
        known = known_methods()
        hint = nearest(name, [*known, *_ALIASES])
        problem = f"unknown method {name!r}{hint}; known: {', '.join(known)}, and two joined by '+'"
        raise FieldError("method", problem, value=name)
    return _METHODS[resolved]


def canonical_name(name: str) -> str:
    """The name under which results of `name` are shown: aliases resolved."""
    return "+".join(cls.name for cls in _classes(name))


def parameter_names(name: str) -> list[str]:
    """The parameters that a method reads, `budget` first."""
    classes = _classes(name)
    own = [f.name for cls in classes for f in fields(cls) if f.name != "budget"]
    return ["budget", *(["first"] if len(classes) > 1 else []), *own]


def known_parameters() -> set[str]:
    """The parameters that any method reads."""
    return {"first", *(parameter for name in _METHODS for parameter in parameter_names(name))}


def build_pruner(name: str, **params: Any) -> Pruner:
    """The pruner `name` with its parameters, all checked now, before any model is loaded.

    `"a+b"` composes a vision-side method with a decoder-side one; `first` is what `a` leaves for `b`. Raises
    `ValueError` naming the culprit: an unknown method, a parameter that the method does not read, or a value
    out of range. Whether the budget can be reached depends on the model's depth: `Pruner.schedule` tells.
    """
    classes, known = _classes(name), parameter_names(name)
    for parameter in params:
        if parameter not in known:
            reads = f"{nearest(parameter, known)}; it reads: {', '.join(known)}"
            problem = f"method {canonical_name(name)!r} does not read it{reads}"
            raise FieldError(parameter, problem, value=params[parameter])
    if len(classes) == 1:
        return classes[0](**params)
    before, inside = (
        cls(**{key: value for key, value in params.items() if key in {f.name for f in fields(cls)} - {"budget"}})
        for cls in classes
    )
    assert isinstance(before, VisionPruner) and isinstance(inside, DecoderPruner)
    return Chain(budget=params.get("budget"), first=params.get("first"), before=before, inside=inside)


def _classes(name: str) -> list[type[Pruner]]:
    """The class of a method, or the two of a composition."""
    if name in _ALIASES or "+" not in str(name):
        return [method_class(name)]
    classes = [method_class(part.strip()) for part in str(name).split("+")]
    if [cls.side for cls in classes] != ["vision", "decoder"]:
        problem = f"got {name!r}; a composition is one vision-side method, '+', and one decoder-side method"
        raise FieldError("method", f"{problem}, such as 'divprune+fastv'", value=name)
    return classes
