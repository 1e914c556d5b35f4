"""Methods and correctors by name: registration, and building a pruner from its name and parameters."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Any, TypeVar, cast

from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.plugins import ask_plugins
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, TwoStage, VisionPruner
from finepruner_lmms.pruners.chain import Chain
from finepruner_lmms.pruners.corrector import Corrector

P = TypeVar("P", bound=type[Pruner])
C = TypeVar("C", bound=type[Corrector])
_CORRECTORS: dict[str, type[Corrector]] = {}
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
            if taken in _CORRECTORS:
                raise FieldError("method", f"the name {taken!r} belongs to a corrector already", fix="choose another")
        check_method(name, cls)
        cls.name = name
        _METHODS[name], _PLACES[name] = cls, place
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return add


def register_corrector(name: str) -> Callable[[C], C]:
    """Make a corrector class known by `name`, to be written behind a method: `divprune+<name>`.

    Raises `FieldError` for a name that is taken, and for a class that is no frozen dataclass of keywords with defaults.
    """
    place = str(sys._getframe(1).f_globals.get("__name__", "__main__"))

    def add(cls: C) -> C:
        owner = _CORRECTORS.get(name)
        if name in _METHODS or name in _ALIASES or (owner is not None and owner.__module__ != cls.__module__):
            raise FieldError("method", f"the name {name!r} belongs to another already", fix="choose another")
        _check_named(name, cls)
        if not issubclass(cls, Corrector):
            raise _refused(name, cls)("is no Corrector", "derive it from Corrector")
        _check_parameters(cls, _refused(name, cls), taken=("name", "budget", "first"))
        cls.name = name
        _CORRECTORS[name], _PLACES[name] = cls, place
        return cls

    return add


def check_method(name: str, cls: type[Any]) -> None:
    """Raise `FieldError` unless `cls` can be registered as the method `name`.

    It has to be a `VisionPruner`, a `DecoderPruner` or a `TwoStage` (or a `Pruner` that drops nothing) with everything
    abstract filled in, and a frozen dataclass whose fields, its parameters, are keywords with defaults.
    """

    refuse = _refused(name, cls)
    _check_named(name, cls)
    if not issubclass(cls, Pruner):
        raise refuse("is no Pruner", "derive it from VisionPruner or DecoderPruner")
    _check_parameters(cls, refuse, taken=("name", "side", "first"))
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


def _refused(name: str, cls: type[Any]) -> Callable[..., FieldError]:
    """Makes the error of what is wrong with a class that is to be registered."""

    def refuse(problem: str, fix: str = "") -> FieldError:
        return FieldError("method", f"{name!r} ({cls.__module__}.{cls.__qualname__}) {problem}", value=cls, fix=fix)

    return refuse


def _check_named(name: str, cls: type[Any]) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refused(name, cls)("has no usable name", "use letters, digits, '_', '-' and '.'")


def _check_parameters(cls: type[Any], refuse: Callable[..., FieldError], taken: tuple[str, ...]) -> None:
    """Raise the error of `refuse` unless a class is whole, and a frozen dataclass of keywords with defaults."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise refuse(f"does not define {' and '.join(missing)}")
    if "__dataclass_params__" not in vars(cls):
        raise refuse("is no frozen dataclass", "write @dataclass(frozen=True, kw_only=True) between @register and it")
    for parameter in fields(cls):
        if not parameter.kw_only:
            raise refuse(f"takes {parameter.name!r} by its place", "write @dataclass(frozen=True, kw_only=True)")
        if parameter.default is MISSING and parameter.default_factory is MISSING:
            raise refuse(f"has no default for {parameter.name!r}", "give each parameter a default")
        if parameter.name in taken:
            raise refuse(f"has a parameter {parameter.name!r}, which means something else", "rename it")


def known_correctors() -> list[str]:
    """The sorted names of all correctors, those of installed plug-ins among them."""
    ask_plugins()
    return sorted(_CORRECTORS)


def corrector_class(name: str) -> type[Corrector]:
    """The class registered as the corrector `name`."""
    return _CORRECTORS[name]


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
        if name in _CORRECTORS:
            problem = f"{name!r} is a corrector, which is written behind a method"
            raise FieldError("method", problem, value=name, fix=f"write 'divprune+{name}' or 'fastv+{name}'")
        known = known_methods()
        hint = nearest(name, [*known, *_ALIASES, *_CORRECTORS])
        behind = ", ".join(sorted(_CORRECTORS))
        problem = (
            f"unknown method {name!r}{hint}; known: {', '.join(known)}, two joined by '+', and behind them {behind}"
        )
        raise FieldError("method", problem, value=name)
    return _METHODS[resolved]


def registered_in(name: str) -> str | None:
    """The module that registered a method, which need not be the one that defines its class; None for no method."""
    return _PLACES.get(name)


def canonical_name(name: str) -> str:
    """The name under which results of `name` are shown: aliases resolved."""
    return "+".join(cls.name for cls in pieces_of(name))


def aliases_of(name: str) -> list[str]:
    """Other names of a method."""
    return sorted(alias for alias, of in _ALIASES.items() if of == name)


def parameter_names(name: str) -> list[str]:
    """The parameters that a method reads, `budget` first."""
    pieces = pieces_of(name)
    own = [f.name for cls in pieces for f in fields(cls) if f.name != "budget"]
    both = sum(issubclass(cls, Pruner) for cls in pieces) > 1
    return ["budget", *(["first"] if both else []), *dict.fromkeys(own)]


def known_parameters() -> set[str]:
    """The parameters that any method or corrector reads."""
    correctors = {f.name for name in known_correctors() for f in fields(_CORRECTORS[name])}
    return {"first", *correctors, *(parameter for name in known_methods() for parameter in parameter_names(name))}


def build_pruner(name: str, **params: Any) -> Pruner:
    """The pruner `name` with its parameters, all checked now, before any model is loaded.

    `"a+b"` composes a vision-side method with a decoder-side one; `first` is what `a` leaves for `b`. Correctors
    follow what they correct: `"a+merge"`, `"a+restore+b"`, `"a+b+restore+random_tail"`. Raises
    `FieldError` naming the culprit: an unknown method, a parameter that the method does not read, or a value
    out of range. Whether the budget can be reached depends on the model's depth: `Pruner.schedule` tells.
    """
    pieces, known = pieces_of(name), parameter_names(name)
    for parameter in params:
        if parameter not in known:
            reads = f"{nearest(parameter, known)}; it reads: {', '.join(known)}"
            problem = f"method {canonical_name(name)!r} does not read it{reads}"
            raise FieldError(parameter, problem, value=params[parameter])
    if len(pieces) == 1:
        return cast(Pruner, pieces[0](**params))
    built: list[Pruner] = []
    for cls in pieces:
        own = {f.name for f in fields(cls)} - {"budget"}
        piece = cls(**{key: value for key, value in params.items() if key in own})
        if isinstance(piece, Corrector):
            built[-1] = piece.on(built[-1])
        else:
            built.append(piece)
    if len(built) == 1:
        return replace(built[0], budget=params.get("budget"))
    before, inside = built
    assert isinstance(before, VisionPruner) and isinstance(inside, DecoderPruner)
    return Chain(budget=params.get("budget"), first=params.get("first"), before=before, inside=inside)


def takes_budget(name: str) -> bool:
    """Whether a method can be given a budget: all but one that shows no token at all."""
    return all(cls().budget is None for cls in _methods_of(name))


def needs_budget(name: str) -> bool:
    """Whether a method has to be given a budget: not the unpruned model, nor one that shows no token at all.

    A name that is none needs one, as most do: who builds it hears what is wrong.
    """
    try:
        return takes_budget(name) and any(cls.side != "none" for cls in _methods_of(name))
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


def pieces_of(name: str) -> list[type[Any]]:
    """The class of a method; of a composition those of its methods and correctors, in order.

    `FieldError` for what is none: see `build_pruner`. Whether a corrector can sit on its method, it says itself.
    """
    if name in _ALIASES or "+" not in str(name):
        return [method_class(name)]
    pieces: list[type[Any]] = []
    for part in _parts(str(name)):
        if part not in _CORRECTORS:
            pieces.append(method_class(part))
        elif not pieces:
            raise FieldError(
                "method", f"got {name!r}; {part!r} corrects a method, and none stands before it", value=name
            )
        elif pieces[-1] in (corrector := _CORRECTORS[part], *(c for c in _CORRECTORS.values() if c.last)):
            twice = "stands there twice" if pieces[-1] is corrector else f"cannot stand behind {pieces[-1].name!r}"
            raise FieldError("method", f"got {name!r}; {part!r} {twice}", value=name)
        else:
            pieces.append(corrector)
    methods = [cls for cls in pieces if issubclass(cls, Pruner)]
    sides = [cls.side for cls in methods]
    if sides == ["vision", "decoder"] and methods[0]().budget == 0:
        raise FieldError("method", f"got {name!r}; {methods[0].name!r} leaves nothing to prune", value=name)
    if len(methods) > 1 and sides != ["vision", "decoder"]:
        problem = f"got {name!r}; a composition is one vision-side method, '+', and one decoder-side method"
        raise FieldError("method", f"{problem}, such as 'divprune+fastv', with correctors behind either", value=name)
    if ended := [cls for cls, after in itertools.pairwise(pieces) if issubclass(cls, Corrector) and cls.last]:
        problem = f"got {name!r}; {ended[0].name!r} is for the layers behind all methods, so it stands last"
        raise FieldError("method", problem, value=name)
    return pieces


def _parts(name: str) -> list[str]:
    """What `+` joins; an alias that holds one is one part, under its own name."""
    joined = "+".join(part.strip() for part in name.split("+"))
    for alias, of in _ALIASES.items():
        if "+" in alias:
            joined = re.sub(rf"(?<![^+]){re.escape(alias)}(?![^+])", of, joined)
    return joined.split("+")


def _methods_of(name: str) -> list[type[Pruner]]:
    return [cls for cls in pieces_of(name) if issubclass(cls, Pruner)]
