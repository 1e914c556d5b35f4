"""Errors as data, and checks of parameters: a field, its value, what is wrong with it and how to go on."""

from __future__ import annotations

import difflib
import math
import numbers
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxdict, _SHOWN.maxlist, _SHOWN.maxtuple = 3, 8, 8, 8
_SHOWN.maxstring = _SHOWN.maxother = 200  # characters


class Failure(Exception):
    """A failure that is expected: its text says all there is to say, in one line, and a traceback would not help.

    The command line shows the text alone and ends with `exit_status`, as `finepruner_lmms.cli` documents it.
    """

    exit_status: ClassVar[int] = 2
    kept: ClassVar[bool] = True
    """Whether what was done before it is still there, so that the same command goes on from it."""

    def lines(self) -> list[str]:
        """What is shown: one line, unless several things are wrong."""
        return [str(self)]


class FieldError(Failure, ValueError):
    """Something that a user gave is wrong. Its text is `field: problem; fix`, one line.

    `field` names what was given, as the user wrote it (`budget`, `model.dtype`); `value` is what it was, `problem`
    what is wrong with it, and `fix`, where the problem does not say it already, how to put it right. Who knows where
    the field stands (a line of a matrix file, an option of a command) adds that place; nobody reads it from the text.
    """

    def __init__(self, field: str, problem: str, *, value: Any = None, fix: str = "") -> None:
        self.field, self.problem, self.value, self.fix = field, problem, value, fix
        super().__init__(f"{field}: {problem}{f'; {fix}' if fix else ''}")

    def __reduce__(self) -> Any:
        """Survive the way between processes."""
        return _restore, (type(self), self.field, self.problem, self.value, self.fix)

    def under(self, prefix: str) -> FieldError:
        """The same error of a field that stands inside `prefix`: `budget` → `methods.2.budget`."""
        return type(self)(f"{prefix}.{self.field}", self.problem, value=self.value, fix=self.fix)

    def renamed(self, field: str) -> FieldError:
        """The same error under the name by which the user gave the field."""
        return type(self)(field, self.problem, value=self.value, fix=self.fix)


def _restore(kind: type[FieldError], field: str, problem: str, value: Any, fix: str) -> FieldError:
    return kind(field, problem, value=value, fix=fix)


def show(value: Any) -> str:
    """A value for a message: its `repr`, cut where it is long, however deep or often repeated its parts are."""
    return _SHOWN.repr(value)


def nearest(name: Any, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for a misspelt name, or nothing."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def list_names(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the first of its text, or its type where it has none."""
    return str(error).strip().partition("\n")[0].strip() or type(error).__name__


def check_choice(field: str, value: Any, known: Iterable[str]) -> None:
    """Raise `FieldError` unless `value` is one of `known`."""
    names = list(known)
    if value not in names:
        raise FieldError(field, f"got {show(value)}{nearest(value, names)}; known: {', '.join(names)}", value=value)


def check_integer(field: str, value: Any, least: int, most: int | None = None) -> None:
    """Raise `FieldError` unless `value` is a whole number in range."""
    wanted = f"a whole number of at least {least}" + ("" if most is None else f" and at most {most}")
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)  # NumPy's integers are integers
    if not whole or value < least or (most is not None and value > most):
        raise FieldError(field, f"got {show(value)}; expected {wanted}", value=value)


def check_share(field: str, value: Any) -> None:
    """Raise `FieldError` unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise FieldError(field, f"got {show(value)}; expected a number from 0 to 1", value=value)


def check_number(field: str, value: Any, least: float) -> None:
    """Raise `FieldError` unless `value` is a finite number of at least `least`."""
    number = not isinstance(value, bool) and isinstance(value, numbers.Real)
    if not number or not least <= float(value) < math.inf:
        raise FieldError(field, f"got {show(value)}; expected a number of at least {least:g}", value=value)


def explain_problem(problem: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words. Our own checks word theirs, and may not want the value quoted."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return "is missing"
    wanted = str(problem["msg"]).removeprefix("Input should be ")
    return f"got {show(problem['input'])}; expected {wanted[0].lower() + wanted[1:]}"
