"""Budgets: how many visual tokens enter a decoder layer, averaged over the layers.

The average is the convention under which methods that prune at different depths are compared (SparseVLM's authors,
PDrop, V2Drop). All arithmetic is exact (`Fraction`), so a schedule never depends on floating point.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from finepruner_lmms.errors import FieldError, show

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class Budget:
    """An average number of visual tokens per layer: a count, a share of N, or (both None) all of them."""

    count: int | None = None
    share: Fraction | None = None

    def tokens(self, num_visual_tokens: int) -> Fraction:
        """The average number of visual tokens for a model with `num_visual_tokens` an image."""
        if self.share is not None:
            return self.share * num_visual_tokens
        return Fraction(num_visual_tokens if self.count is None else self.count)


def parse_budget(value: int | str | None) -> Budget:
    """`128`, `"128"` or `"22%"`; `None` keeps every token. Anything else is a `FieldError`."""
    if value is None:
        return Budget()
    if isinstance(value, str):
        if share := _SHARE.fullmatch(value.strip()):
            fraction = Fraction(share[1]) / 100
            if 0 < fraction <= 1:
                return Budget(share=fraction)
        elif value.strip().isdecimal() and int(value) > 0:
            return Budget(count=int(value))
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return Budget(count=value)
    raise FieldError(
        "budget",
        f"got {show(value)}; expected a positive number of visual tokens, such as 128, "
        "or a share of them, such as '22%' (above 0%, at most 100%)",
        value=value,
    )


def round_half_up(value: Fraction) -> int:
    """The nearest integer, halves up (Python's `round` would send halves to the even neighbour)."""
    return math.floor(value + Fraction(1, 2))


def show_tokens(value: Fraction) -> str:
    """`36`, `57.6`: a token count for messages and tables, at most two decimals."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")
