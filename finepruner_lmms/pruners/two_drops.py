"""Two drops inside the language model, and how many tokens they leave so that the layers see the budget on average."""

from __future__ import annotations

import math
from fractions import Fraction

from finepruner_lmms.pruners.base import Stage
from finepruner_lmms.pruners.budget import round_half_up


def two_drops(
    layers: tuple[int, int, int], tokens: int, budget: Fraction, tail: Fraction, reach: int = 0
) -> tuple[Stage, ...]:
    """Drops before the first two of `layers`, of `tokens` that enter; the third is how many layers there are.

    Behind the second about `tail` of what is left by the first stays, one token at least. Of the counts within `reach`
    of what that share would be exactly, those whose average over all layers is nearest to `budget`, then the nearest.
    """
    first, second, depth = layers
    middle, end = second - first, depth - second
    inside = depth * budget - first * tokens
    wanted = min(inside / (middle + end * tail), Fraction(tokens))
    whole, ways = math.floor(wanted), []
    for kept in range(max(whole - reach, 1), min(max(whole + 1 + reach, 1), tokens) + 1):
        last = min(max(round_half_up((inside - middle * kept) / end), 1), kept)
        ways.append((abs(inside - middle * kept - end * last), abs(kept - wanted), kept, last))
    *_, kept, last = min(ways)
    drops = (Stage(first, kept),) if kept < tokens else ()
    return (*drops, Stage(second, last)) if last < kept else drops
