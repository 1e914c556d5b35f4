"""Budgets: how many visual tokens enter a decoder layer, averaged over the layers.

The average is the convention under which methods that prune at different depths are compared (SparseVLM's authors,
PDrop, V2Drop). All arithmetic is exact (`Fraction`), so a schedule never depends on floating point.
"""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from fractions import Fraction

from finepruner_lmms.errors import FieldError

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_OF = re.compile(r"(\d{1,9})\s*/\s*(\d{1,9})")


BudgetValue = int | str | Fraction | None
"""What a budget may be written as: a count, a share of N such as `"22%"` or `"640/2880"`, or None for every token."""


@dataclass(frozen=True)
class Budget:
    """An average number of visual tokens per layer: a count, a share of N, or (both None) all of them."""

    count: int | Fraction | None = None
    share: Fraction | None = None

    def tokens(self, num_visual_tokens: int) -> Fraction:
        """The average number of visual tokens for a model with `num_visual_tokens` per image."""
        if self.share is not None:
            return self.share * num_visual_tokens
        return Fraction(num_visual_tokens if self.count is None else self.count)


def parse_budget(value: BudgetValue, field: str = "budget") -> Budget:
    """`128`, `"128"`, `"22%"`, or `"640/2880"`, a share as papers count it; `None` keeps every token.

    Each is per image. A method that works for another may get a `Fraction`, which is a count. The number 0 is that of
    the one method that shows no token; `plain_budget` takes it from nobody.
    Anything else is a `FieldError` of `field`.
    """
    if value is None:
        return Budget()
    if isinstance(value, str):
        if share := _SHARE.fullmatch(value.strip()):
            fraction = Fraction(share[1]) / 100
            if 0 < fraction <= 1:
                return Budget(share=fraction)
        elif of := _OF.fullmatch(value.strip()):
            if 0 < int(of[1]) <= int(of[2]):
                return Budget(share=Fraction(int(of[1]), int(of[2])))
        elif value.strip().isdecimal() and int(value) > 0:
            return Budget(count=int(value))
    elif isinstance(value, numbers.Rational) and not isinstance(value, bool) and value >= 0:
        exact = Fraction(int(value.numerator), int(value.denominator))
        return Budget(count=int(exact) if exact.denominator == 1 else exact)
    raise _no_budget(value, field)


def _no_budget(value: BudgetValue, field: str) -> FieldError:
    return FieldError(
        field,
        f"got {value!r}; expected a positive number of visual tokens, such as 128, "
        "or a share of them, such as '22%' or '640/2880' (above 0%, at most 100%)",
        value=value,
    )


def keeps_all(value: BudgetValue, num_visual_tokens: int) -> bool:
    """Whether an image of so many visual tokens stays whole: the budget is no part of it."""
    return parse_budget(value).tokens(num_visual_tokens) >= num_visual_tokens


def plain_budget(value: BudgetValue, field: str = "budget") -> BudgetValue:
    """The one way to write a budget: `64` for `"64"` and NumPy's 64, `"22.5%"` for `" 22.50 %"`. Errors as above.

    A share keeps the numbers in which it was given: `"640/2880"` stays that.
    """
    budget = parse_budget(value, field)
    if budget.count == 0:
        raise _no_budget(value, field)
    if budget.share is None:
        return budget.count
    if of := _OF.fullmatch(str(value).strip()):
        return f"{int(of[1])}/{int(of[2])}"
    percent = budget.share * 100  # was written as a decimal, so its decimals end
    decimals = 0
    while (percent * 10**decimals).denominator > 1:
        decimals += 1
    digits = str(int(percent * 10**decimals)).rjust(decimals + 1, "0")
    return f"{digits[: len(digits) - decimals]}{'.' if decimals else ''}{digits[len(digits) - decimals :]}%"


def exactly(share: float) -> Fraction:
    """A share as it was written: 0.1 is a tenth."""
    return Fraction(str(share))


def round_half_up(value: Fraction) -> int:
    """The nearest integer, halves up (Python's `round` would send halves to the even neighbour)."""
    return math.floor(value + Fraction(1, 2))


def show_tokens(value: Fraction) -> str:
    """`36`, `57.6`: a token count for messages and tables, at most two decimals."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


__all__ = [
    "Budget",
    "BudgetValue",
    "exactly",
    "keeps_all",
    "parse_budget",
    "plain_budget",
    "round_half_up",
    "show_tokens",
]
