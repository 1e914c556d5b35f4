"""A regular grid over the image: blind like `random`, but evenly spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.pruners.base import VisionPruner, register
from finepruner_lmms.vision import VisionOutputs


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(VisionPruner):
    """Keeps the tokens of an even grid, the same in every image."""

    def select_visual(self, vision: VisionOutputs) -> Tensor:
        """The grid, for each of B images: `[B, N]`."""
        num_visual = vision.num_visual_tokens
        mask = torch.zeros(num_visual, dtype=torch.bool)
        mask[grid_indices(num_visual, self.retained(num_visual))] = True
        return mask.to(vision.features.device).expand(len(vision.features), -1)


def grid_indices(num_visual: int, retained: int) -> list[int]:
    """`retained` evenly spread places of an image of `num_visual` tokens in raster order, ascending.

    A square image of side g gets a grid of rows × columns: the factors of `retained` where these are within 1:2
    (64 = 8×8, 128 = 8×16, 192 = 12×16), else rows whose lengths differ by at most one. Other images are a line.
    """
    side = math.isqrt(num_visual)
    if side * side != num_visual:
        return spread(retained, num_visual)
    factors = [r for r in range(1, math.isqrt(retained) + 1) if retained % r == 0 and retained // r <= min(side, 2 * r)]
    rows = factors[-1] if factors else max(round(math.sqrt(retained)), math.ceil(retained / side))
    lengths = [(row + 1) * retained // rows - row * retained // rows for row in range(rows)]
    return [y * side + x for y, length in zip(spread(rows, side), lengths, strict=True) for x in spread(length, side)]


def spread(count: int, length: int) -> list[int]:
    """`count` places in 0..length-1, each in the middle of its share: `spread(2, 8) == [2, 6]`."""
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]
