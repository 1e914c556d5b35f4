"""What a study can find: the smallest difference that it detects, and what an interval says of a margin."""

from __future__ import annotations

import math
from typing import Literal

from finepruner_lmms.statistics.differences import Difference
from finepruner_lmms.statistics.effects import Z

_POWER = 0.8416212335729143
"""The 80 % point of the normal distribution."""
Shown = Literal["shown", "not shown", "too small to say"]


def detectable(questions: int, discordant: float, deff: float = 1.0, k: float = 1.0) -> float:
    """The smallest difference found with 80 % power at 5 %, two-sided, in percent of the maximum.

    `discordant` is the share of questions that one of the two rows answers better, `deff` the design effect
    1 + (m - 1) ICC of m questions per image, `k` what a score moves per share of answers: 1 for accuracy and F1,
    about 2.1 for MME's points.
    """
    return 100 * (Z + _POWER) * k * math.sqrt(discordant * deff / questions)


def detectable_by_error(error: float) -> float:
    """The same by the standard error of a difference, in its unit."""
    return (Z + _POWER) * error


def equivalence(difference: Difference, margin: float) -> Shown:
    """Whether the first row is shown to be no worse than the second by more than `margin`, in the difference's unit.

    "shown": the whole 95 % interval is above the negative margin. "not shown": all of it is below. Otherwise the study
    is too small to say.
    """
    if difference.low is None or difference.high is None:
        return "too small to say"
    if difference.low > -margin:
        return "shown"
    return "not shown" if difference.high < -margin else "too small to say"
