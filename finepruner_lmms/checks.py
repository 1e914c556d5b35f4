"""Checks of parameters: one clear error naming the field, the value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(name: Any, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for a misspelt name, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_choice(field: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{field}: got {value!r}{nearest(value, known)}; known: {', '.join(known)}")


def check_integer(field: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise `ValueError` unless `value` is a whole number in range."""
    wanted = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise ValueError(f"{field}: got {value!r}; expected {wanted}")


def check_share(field: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{field}: got {value!r}; expected a number from 0 to 1")
