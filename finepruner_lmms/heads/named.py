"""Functions by name, which plug-ins may add to: the head strategies, and the queries."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from finepruner_lmms.errors import FieldError, check_choice, nearest
from finepruner_lmms.plugins import ask_plugins

F = TypeVar("F", bound=Callable[..., Any])
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class Named(Generic[F]):
    """Functions of one kind: `what` in words. `field` is the parameter that takes their names, and `reserved`."""

    def __init__(self, field: str, what: str, reserved: Iterable[str]) -> None:
        self.field, self.what, self.reserved = field, what, tuple(reserved)
        self._functions: dict[str, F] = {}
        self._places: dict[str, str] = {}

    def register(self, name: str, place: str) -> Callable[[F], F]:
        """A decorator that adds a function; `place` is the module that registers it. `FieldError` for a bad name."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise FieldError(self.field, f"{name!r} is no usable name", fix="use letters, digits, '_', '-' and '.'")
        if name in self.reserved:
            raise FieldError(self.field, f"the name {name!r} means something else", fix="choose another")

        def add(function: F) -> F:
            if not callable(function):
                raise FieldError(self.field, f"{name!r} is registered for {function!r}, which is no function")
            owner = self._functions.get(name)
            if owner is not None and _identity(owner) != _identity(function):
                raise FieldError(
                    self.field, f"the name {name!r} belongs to {_identity(owner)} already", fix="choose another"
                )
            self._functions[name], self._places[name] = function, place
            return function

        return add

    def known(self) -> tuple[str, ...]:
        """The sorted names of all, those of plug-ins among them."""
        ask_plugins()
        return tuple(sorted(self._functions))

    def find(self, name: Any) -> F:
        """The function of that name; `FieldError` with what is known where there is none, also in plug-ins."""
        if not self._has(name):
            known = self.known()
            problem = f"unknown {self.what} {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            raise FieldError(self.field, problem, value=name)
        return self._functions[name]

    def check(self, name: Any) -> None:
        """Raise `FieldError` unless `name` is known, or reserved."""
        if name not in self.reserved and not self._has(name):
            check_choice(self.field, name, (*self.reserved, *sorted(self._functions)))

    def _has(self, name: Any) -> bool:
        if name not in self._functions:
            ask_plugins()
        return name in self._functions

    def get(self, name: str | None) -> F | None:
        """The function of that name, if it is registered."""
        return None if name is None else self._functions.get(name)

    def registered_in(self, name: str | None) -> str | None:
        """The module that registered a name, which need not be the one that defines it; None where there is none."""
        return None if name is None else self._places.get(name)


def caller() -> str:
    """The module that called the function that asks."""
    return str(sys._getframe(2).f_globals.get("__name__", "__main__"))


def _identity(function: Any) -> str:
    """Whose function it is: the same after a module is read again."""
    inner = getattr(function, "func", function)  # a `functools.partial`
    return f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
