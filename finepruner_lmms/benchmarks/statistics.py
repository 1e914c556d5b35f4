"""How sure a score is: the bootstrap over images, and a standard error that is None where it was not measured.

Questions about one image are not independent, so images are drawn, not questions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

from finepruner_lmms.lazy import np

REPLICATES = 1000
_NOISE = 1e-9  # of a percentage: what rounding leaves where all draws are equal


def bootstrap_totals(rows: np.ndarray, images: Sequence[str], seed: str) -> np.ndarray:
    """Sums `[1000, k]` of additive rows `[m, k]`, each over as many images as there are, drawn with replacement.

    `images[i]` names the image of row i. The draws depend on the names and the seed alone, so that two methods that
    answered questions about the same images get the same draws. They take 1000 times n random numbers for n images,
    one draw at a time, so that memory stays at a few n.
    """
    names, inverse = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, inverse, rows)
    kinds, kind = np.unique(sums, axis=0, return_inverse=True)  # few: most images have one question, right or wrong
    kind = kind.reshape(-1).astype(np.int32)
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    totals = np.empty((REPLICATES, rows.shape[1]))
    for total in totals:
        drawn = rng.integers(0, len(names), len(names), dtype=np.int32)
        total[:] = np.bincount(kind[drawn], minlength=len(kinds)).astype(np.float64) @ kinds
    return totals


def spread(draws: np.ndarray) -> float | None:
    """The standard deviation of bootstrap draws of a percentage: its standard error.

    None where it is not measured: all draws agree, because there is one image, or because the score is the same
    whatever is drawn. That says that the bootstrap saw nothing, not that the score is certain.
    """
    return None if np.ptp(draws) <= _NOISE else float(draws.std(ddof=1))


def measured(error: float | None) -> float | None:
    """A standard error as it is read from a file: 0, which older results have where nothing was measured, is None."""
    return error if error is not None and error > _NOISE else None


def error_of_mean(errors: Sequence[float | None]) -> float | None:
    """The standard error of the mean of independent scores; None where the error of any of them is not measured."""
    known = [error for error in errors if error is not None]
    if len(known) < len(errors) or not known:
        return None
    return math.sqrt(sum(error**2 for error in known)) / len(known)
