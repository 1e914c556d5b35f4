"""The grid of an image's visual tokens, in raster order."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def grid_indices(
    num_visual: int,
    retained: int,
    device: torch.device | str = "cpu",
    shape: tuple[int, int] | None = None,
) -> Tensor:
    """`retained` evenly spread places of an image of `num_visual` tokens in raster order, ascending: `[retained]`.

    `shape` is rows × columns of the image; by default it is a square, or a line where it can be none. A square gets a
    grid of rows × columns: the factors of `retained` where these are within 1:2 (64 = 8×8, 128 = 8×16, 192 = 12×16).
    Otherwise rows differ in length by at most one, and are about as far apart as the tokens in them. Computed on
    `device`, because copying the places there would wait for it.
    """
    place, side = torch.arange(retained, device=device), image_side(num_visual)
    height, width = shape or ((num_visual, 1) if side is None else (side, side))
    even = grid_shape(retained, height) if height == width else None
    wanted = round(math.sqrt(retained * height / width))
    rows = even[0] if even else min(max(wanted, math.ceil(retained / width)), height, retained)
    row = ((place + 1) * rows - 1) // retained  # row r holds the places from r·R/rows on, rounded down
    start, end = row * retained // rows, (row + 1) * retained // rows
    return spread(row, rows, height) * width + spread(place - start, end - start, width)


def with_neighbours(mask: Tensor, grids: Sequence[tuple[int, int, int]]) -> Tensor:
    """`mask` `[B, N]`, and the four neighbours of every place in it: `[B, N]`.

    It is over `grids` one after the other, frames × rows × columns each; what stands in another is no neighbour.
    """
    parts = mask.split([math.prod(grid) for grid in grids], 1)
    return torch.cat([_grown(part.unflatten(1, grid)) for part, grid in zip(parts, grids, strict=True)], 1)


def _grown(found: Tensor) -> Tensor:
    grown = found.clone()
    grown[:, :, 1:] |= found[:, :, :-1]
    grown[:, :, :-1] |= found[:, :, 1:]
    grown[..., 1:] |= found[..., :-1]
    grown[..., :-1] |= found[..., 1:]
    return grown.flatten(1)


def spread(place: Tensor, count: int | Tensor, length: int) -> Tensor:
    """Where in 0..length-1 the `place`-th of `count` stands, in the middle of its share: of 2 in 8 at 2 and 6."""
    return (2 * place + 1) * length // (2 * count)
