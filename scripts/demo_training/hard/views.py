"""Pictures of the demanding world as patches, drawn once and kept in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finepruner_lmms.demo.hard.scenes import Scene, make_scene, make_view
from finepruner_lmms.demo.scenes import GRID, PATCH


@dataclass(frozen=True)
class Views:
    """Scenes of `grid`×`grid` patches, and their pixels `[n, grid², 588]` uint8, channels first inside a patch."""

    grid: int
    scenes: list[Scene]
    pixels: Tensor

    def places(self, count: int, shift: bool) -> Tensor:
        """`[count, grid²]`: where in the 24×24 plane each patch is; with `shift`, somewhere else for each picture."""
        room = GRID - self.grid if shift else 0
        corners = torch.randint(0, room + 1, (count, 2))
        line = torch.arange(self.grid)
        rows, columns = corners[:, :1] + line, corners[:, 1:] + line
        return (rows[:, :, None] * GRID + columns[:, None]).flatten(1)


def laid_out(split: str, start: int, count: int, grid: int) -> list[Scene]:
    """Their scenes; nothing is drawn."""
    numbers = range(start, start + count)
    return [make_scene(split, i) if grid == GRID else make_view(split, i, grid) for i in numbers]


def views(split: str, start: int, count: int, grid: int) -> Views:
    """The pictures `start`, `start + 1`, … of a split; whole scenes where `grid` is 24."""
    scenes = laid_out(split, start, count, grid)
    pixels = torch.empty(count, grid * grid, 3 * PATCH * PATCH, dtype=torch.uint8)
    for place, scene in enumerate(scenes):
        tiles = scene.pixels().reshape(grid, PATCH, grid, PATCH, 3)
        pixels[place] = torch.from_numpy(np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3))).reshape(grid * grid, -1)
    return Views(grid, scenes, pixels)
