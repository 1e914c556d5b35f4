"""Several tests at once: p-values adjusted for as many chances to be wrong."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values: the chance of one false alarm or more in the whole family is bounded by the level.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted = [0.0] * len(p)
    worst = 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = worst
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values for exploration: the expected share of false alarms among what is called different is bounded.

    Source: Y. Benjamini, Y. Hochberg, Journal of the Royal Statistical Society B 57 (1995).
    """
    adjusted = [0.0] * len(p)
    best = 1.0
    for rank, place in sorted(enumerate(sorted(range(len(p)), key=p.__getitem__), 1), reverse=True):
        best = min(best, len(p) * p[place] / rank)
        adjusted[place] = best
    return adjusted
