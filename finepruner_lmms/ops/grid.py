"""The square grid of an image's visual tokens, in raster order."""

from __future__ import annotations

import math


def image_side(num_visual: int) -> int | None:
    """The side of the square that `num_visual` tokens form; None if they form none."""
    side = math.isqrt(num_visual)
    return side if side * side == num_visual else None


def grid_shape(count: int, side: int) -> tuple[int, int] | None:
    """`count` as rows × columns within 1:2 and within the image, as square as can be; None if it is none."""
    factors = [r for r in range(1, math.isqrt(count) + 1) if count % r == 0 and count // r <= min(side, 2 * r)]
    return (factors[-1], count // factors[-1]) if factors else None


def grid_indices(num_visual: int, retained: int) -> list[int]:
    """`retained` evenly spread places of an image of `num_visual` tokens in raster order, ascending.

    A square image of side g gets a grid of rows × columns: the factors of `retained` where these are within 1:2
    (64 = 8×8, 128 = 8×16, 192 = 12×16), else rows whose lengths differ by at most one. Other images are a line.
    """
    side = image_side(num_visual)
    if side is None:
        return spread(retained, num_visual)
    shape = grid_shape(retained, side)
    rows = shape[0] if shape else max(round(math.sqrt(retained)), math.ceil(retained / side))
    lengths = [(row + 1) * retained // rows - row * retained // rows for row in range(rows)]
    return [y * side + x for y, length in zip(spread(rows, side), lengths, strict=True) for x in spread(length, side)]


def spread(count: int, length: int) -> list[int]:
    """`count` places in 0..length-1, each in the middle of its share: `spread(2, 8) == [2, 6]`."""
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]
