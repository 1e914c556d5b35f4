"""Methods by name: registration, and building a pruner from its name and parameters."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.plugins import ask_plugins
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, TwoStage, VisionPruner
from finepruner_lmms.pruners.chain import Chain

P = TypeVar("P", bound=type[Pruner])
_METHODS: dict[str, type[Pruner]] = {}
_ALIASES: dict[str, str] = {}
_PLACES: dict[str, str] = {}
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def register(name: str, *aliases: str) -> Callable[[P], P]:
    """Make a pruner class known by `name` (and `aliases`) to `build_pruner`, lmms-eval and matrix files.

    Raises `FieldError` for a name that is taken, and for a class that cannot work as a method: see `check_method`.
    """

    place = str(sys._getframe(1).f_globals.get("__name__", "__main__"))

    def add(cls: P) -> P:
        for taken in (name, *aliases):
            owner = _METHODS.get(_ALIASES.get(taken, taken))
            if owner is not None and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
                where = f"{owner.__module__}.{owner.__qualname__}"
                raise FieldError("method", f"the name {taken!r} belongs to {where} already", fix="choose another")
        check_method(name, cls)
        cls.name = name
        _METHODS[name], _PLACES[name] = cls, place
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return add


def check_method(name: str, cls: type[Any]) -> None:
    """Raise `FieldError` unless `cls` can be registered as the method `name`.

    It has to be a `VisionPruner`, a `DecoderPruner` or a `TwoStage` (or a `Pruner` that drops nothing) with everything
    abstract filled in, and a frozen dataclass whose fields, its parameters, are keywords with defaults.
    """

    def refuse(problem: str, fix: str = "") -> FieldError:
        return FieldError("method", f"{name!r} ({cls.__module__}.{cls.__qualname__}) {problem}", value=cls, fix=fix)

    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refuse("has no usable name", "use letters, digits, '_', '-' and '.'")
    if not issubclass(cls, Pruner):
        raise refuse("is no Pruner", "derive it from VisionPruner or DecoderPruner")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise refuse(f"does not define {' and '.join(missing)}")
    if "__dataclass_params__" not in vars(cls):
        raise refuse("is no frozen dataclass", "write @dataclass(frozen=True, kw_only=True) between @register and it")
    for parameter in fields(cls):
        if not parameter.kw_only:
            raise refuse(f"takes {parameter.name!r} by its place", "write @dataclass(frozen=True, kw_only=True)")
        if parameter.default is MISSING and parameter.default_factory is MISSING:
            raise refuse(f"has no default for {parameter.name!r}", "give each parameter a default")
        if parameter.name in ("name", "side", "first"):
            raise refuse(f"has a parameter {parameter.name!r}, which means something else", "rename it")
    sides = {VisionPruner: "vision", DecoderPruner: "decoder", TwoStage: "both"}
    side = next((named for base, named in sides.items() if issubclass(cls, base)), "none")
    if getattr(cls, "side", None) != side:
        raise refuse(f"says side = {getattr(cls, 'side', None)!r}, but what it derives from is {side!r}")
    try:
        built = cls(budget="64")
    except ValueError:  # it has no such budget
        return
    if built.budget != 64:
        raise refuse("does not check its budget", "call super().__post_init__() first in its own")


def known_methods() -> list[str]:
    """The sorted names of all methods, those of installed plug-ins among them."""
    ask_plugins()
    return sorted(_METHODS)


def method_class(name: str) -> type[Pruner]:
    """The class registered as `name` or as one of its aliases; `FieldError` if there is none."""
    if _ALIASES.get(name, name) not in _METHODS:
        ask_plugins()
    resolved = _ALIASES.get(name, name)
    if resolved not in _METHODS:
        known = known_methods()
        hint = nearest(name, [*known, *_ALIASES])
        problem = f"unknown method {name!r}{hint}; known: {', '.join(known)}, and two joined by '+'"
        raise FieldError("method", problem, value=name)
    return _METHODS[resolved]


def registered_in(name: str) -> str | None:
    """The module that registered a method, which need not be the one that defines its class; None for no method."""
    return _PLACES.get(name)


def canonical_name(name: str) -> str:
    """The name under which results of `name` are shown: aliases resolved."""
    return "+".join(cls.name for cls in _classes(name))


def aliases_of(name: str) -> list[str]:
    """Other names of a method."""
    return sorted(alias for alias, of in _ALIASES.items() if of == name)


def parameter_names(name: str) -> list[str]:
    """The parameters that a method reads, `budget` first."""
    classes = _classes(name)
    own = [f.name for cls in classes for f in fields(cls) if f.name != "budget"]
    return ["budget", *(["first"] if len(classes) > 1 else []), *own]


def known_parameters() -> set[str]:
    """The parameters that any method reads."""
    return {"first", *(parameter for name in known_methods() for parameter in parameter_names(name))}


def build_pruner(name: str, **params: Any) -> Pruner:
    """The pruner `name` with its parameters, all checked now, before any model is loaded.

    `"a+b"` composes a vision-side method with a decoder-side one; `first` is what `a` leaves for `b`. Raises
    `FieldError` naming the culprit: an unknown method, a parameter that the method does not read, or a value
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


def takes_budget(name: str) -> bool:
    """Whether a method can be given a budget: all but one that shows no token at all."""
    return all(cls().budget is None for cls in _classes(name))


def needs_budget(name: str) -> bool:
    """Whether a method has to be given a budget: not the unpruned model, nor one that shows no token at all.

    A name that is none needs one, as most do: who builds it hears what is wrong.
    """
    try:
        return takes_budget(name) and any(cls.side != "none" for cls in _classes(name))
    except FieldError:
        return True


def check_budget_given(pruner: Pruner) -> None:
    """Raise `FieldError` if a method that drops tokens was given no budget.

    `build_pruner` takes None for every token, as the budget of N; who writes a study or a command line and leaves it
    out would get the unpruned model under a method's name.
    """
    if pruner.budget is None and pruner.side != "none":
        problem = f"is missing, and without one {pruner.name!r} would keep every token"
        fix = "say how many it may keep, such as 128 or '22%'; the unpruned model is method 'vanilla'"
        raise FieldError("budget", problem, fix=fix)


def _classes(name: str) -> list[type[Pruner]]:
    """The class of a method, or the two of a composition."""
    if name in _ALIASES or "+" not in str(name):
        return [method_class(name)]
    classes = [method_class(part.strip()) for part in str(name).split("+")]
    if [cls.side for cls in classes] == ["vision", "decoder"] and classes[0]().budget == 0:
        raise FieldError("method", f"got {name!r}; {classes[0].name!r} leaves nothing to prune", value=name)
    if [cls.side for cls in classes] != ["vision", "decoder"]:
        problem = f"got {name!r}; a composition is one vision-side method, '+', and one decoder-side method"
        raise FieldError("method", f"{problem}, such as 'divprune+fastv'", value=name)
    return classes
