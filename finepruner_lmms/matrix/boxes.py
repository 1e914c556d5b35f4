"""Where the evidence of a question lies among its visual tokens, and how much of it a method kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from finepruner_lmms.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle as shares of the picture that the model sees, 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float


def weights(boxes: Sequence[Box], grid: tuple[int, int]) -> NDArray[np.float64]:
    """`[rows * columns]`: how much of each token's part of the picture lies in a box, 0 to 1; boxes may overlap."""
    fine = 16  # points per side of a token at which is looked whether they are in a box
    rows, columns = grid
    down = (np.arange(rows * fine) + 0.5) / (rows * fine)
    across = (np.arange(columns * fine) + 0.5) / (columns * fine)
    inside = np.zeros((rows * fine, columns * fine), dtype=bool)
    for box in boxes:
        inside |= ((box.top <= down) & (down < box.bottom))[:, None] & ((box.left <= across) & (across < box.right))
    found: NDArray[np.float64] = inside.reshape(rows, fine, columns, fine).mean((1, 3)).reshape(-1)
    return found


def share(of: NDArray[np.float64], kept: NDArray[np.bool_]) -> float | None:
    """The share of the evidence `of` `[N]` that the `kept` `[N]` tokens show; None where there is none."""
    whole = float(of.sum())
    return float(of[kept].sum()) / whole if whole > 0 else None
