"""How numbers with errors are written: two significant digits of the error, the same in all rows of a column."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from finepruner_lmms.matrix.progress import MISSING

_MOST = 4


def decimals(errors: Iterable[float | None], least: int = 1) -> int:
    """How many decimals a column with these errors has.

    As many as show two significant digits of the smallest, and at least one, as papers print scores.
    """
    known = [error for error in errors if error]
    if not known:
        return least
    return min(_MOST, max(least, 1 - math.floor(math.log10(min(known)))))


@dataclass(frozen=True)
class Digits:
    """The decimals of a column of numbers with intervals: of the numbers, and of the ends, which need fewer."""

    value: int
    ends: int

    @classmethod
    def of(cls, known: Iterable[tuple[float | None, float | None, float | None]]) -> Digits:
        """For errors with the low and high ends of intervals; None where they are not known."""
        known = list(known)
        halves = [(high - low) / 2 for _, low, high in known if low is not None and high is not None]
        usual = [statistics.median(halves)] if halves else []
        return cls(decimals(error for error, *_ in known), decimals(usual, least=0))


def number(value: float, places: int, sign: bool = False) -> str:
    """A number, never as -0."""
    rounded = round(value, places) + 0.0
    return f"{rounded:{'+' if sign else ''}.{places}f}"


def interval(low: float | None, high: float | None, places: int, sign: bool = False) -> str:
    """`[74.1, 78.8]`, or a dash where it is not known."""
    if low is None or high is None:
        return f"[{MISSING}]"
    return f"[{number(low, places, sign)}, {number(high, places, sign)}]"


def with_error(value: float, error: float | None, plus_minus: str = " ± ", places: int | None = None) -> str:
    """A number and its standard error, or a dash where that was not measured."""
    places = decimals([error]) if places is None else places
    return f"{number(value, places)}{plus_minus}{MISSING if error is None else number(error, places)}"
