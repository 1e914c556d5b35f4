"""The square grid of an image's visual tokens, in raster order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def image_side(num_visual: int) -> int | None:
    """The side of the square that `num_visual` tokens form; None if they form none."""
    side = math.isqrt(num_visual)
    return side if side * side == num_visual else None


def grid_shape(count: int, side: int) -> tuple[int, int] | None:
    """`count` as rows × columns within 1:2 and within the image, as square as can be; None if it is none."""
    factors = [r for r in range(1, math.isqrt(count) + 1) if count % r == 0 and count // r <= min(side, 2 * r)]
    return (factors[-1], count // factors[-1]) if factors else None


def grid_indices(num_visual: int, retained: int, device: torch.device | str = "cpu") -> Tensor:
    """`retained` evenly spread places of an image of `num_visual` tokens in raster order, ascending: `[retained]`.

    A square image of side g gets a grid of rows × columns: the factors of `retained` where these are within 1:2
    (64 = 8×8, 128 = 8×16, 192 = 12×16), else rows whose lengths differ by at most one. Other images are a line.
    Computed on `device`, because copying the places there would wait for it.
    """
    place, side = torch.arange(retained, device=device), image_side(num_visual)
    if side is None:
        return spread(place, retained, num_visual)
    shape = grid_shape(retained, side)
    rows = shape[0] if shape else max(round(math.sqrt(retained)), math.ceil(retained / side))
    row = ((place + 1) * rows - 1) // retained  # row r holds the places from r·R/rows on, rounded down
    start, end = row * retained // rows, (row + 1) * retained // rows
    return spread(row, rows, side) * side + spread(place - start, end - start, side)


def spread(place: Tensor, count: int | Tensor, length: int) -> Tensor:
    """Where in 0..length-1 the `place`-th of `count` stands, in the middle of its share: of 2 in 8 at 2 and 6."""
    return (2 * place + 1) * length // (2 * count)
