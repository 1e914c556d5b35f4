"""What one row's answers to one task come to, summed by image: all that scores, intervals and differences need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import np

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True, eq=False)
class Tally:
    """The answers of one row to one task.

    A score is a function of sums over questions. Questions about one image are not independent, so the sums are by
    image: `sums` `[G, k]`, those of the image `images[g]`; the names are sorted. `percent` turns totals `[..., k]`
    into the score in percent of the maximum. `documents` `[N]` and `scores` `[N]` (0 to 1) are the questions one by
    one, ascending.
    """

    images: tuple[str, ...]
    sums: ndarray
    documents: ndarray
    scores: ndarray
    percent: Callable[[ndarray], ndarray]
    pool: str = ""
    """Where the images are from: equal names in one pool are one image, also in two tasks."""
    pseudo: float = 1.0
    """What the two answers that a difference is taken to have missed are worth, in questions."""
    per_percent: float = 1.0
    """The score as the field prints it, per percent of the maximum: 20 for MME's points."""
    bounded: bool = True
    """Whether the score is a share, from 0 to 100."""
    asked: str = ""
    """A hash of the questions with their images and right answers: two rows compare where it is the same."""

    @property
    def questions(self) -> int:
        """N."""
        return len(self.documents)

    @property
    def value(self) -> float:
        """The score in percent of the maximum."""
        return float(self.percent(self.sums.sum(0)))

    @property
    def unit(self) -> float:
        """What one missed answer would change, in percent."""
        return 100 * self.pseudo / max(self.questions, 1)


def sum_by_image(rows: ndarray, images: Sequence[str]) -> tuple[tuple[str, ...], ndarray]:
    """The sorted names `[G]` and the sums `[G, k]` of additive rows `[m, k]`; `images[i]` names the image of row i."""
    names, inverse = np.unique(np.asarray(images, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, inverse, rows)
    return tuple(map(str, names)), sums
