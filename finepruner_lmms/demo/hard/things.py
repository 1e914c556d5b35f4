"""What stands in a crowded scene: shapes of three sizes, plates with numbers, and scraps of photographs."""

from __future__ import annotations

from dataclasses import dataclass

from finepruner_lmms.demo.scenes import GRID, PATCH

COLORS = {
    "red": (215, 38, 38),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (240, 215, 40),
    "purple": (150, 50, 190),
    "orange": (245, 130, 25),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
COLORS_ZH = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色",
    "purple": "紫色", "orange": "橙色", "white": "白色", "black": "黑色",
}  # fmt: skip
SIZES = {"small": 1, "medium": 2, "large": 3}
"""Patches that a shape of each size spans, in each direction. A small one is smaller than its patch."""
SIZES_ZH = {"small": "小", "medium": "中", "large": "大"}
SIDES = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDES_ZH = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}


@dataclass(frozen=True)
class Thing:
    """A shape or a plate. `x`, `y`, `width`, `height` count patches.

    `name` is a shape ("star") or the number on a plate ("407"); `size` is a key of `SIZES`, and "" for a plate.
    """

    name: str
    color: str
    size: str
    x: int
    y: int
    width: int
    height: int

    @property
    def is_plate(self) -> bool:
        """Whether it is a plate with a number."""
        return self.name.isdecimal()

    def tokens(self, grid: int = GRID) -> list[int]:
        """Its visual tokens, in raster order of a picture of `grid`×`grid` patches."""
        return [(self.y + dy) * grid + self.x + dx for dy in range(self.height) for dx in range(self.width)]

    def box(self) -> list[int]:
        """Left, top, right and bottom of the patches that it fills, in pixels."""
        right, bottom = self.x + self.width, self.y + self.height
        return [self.x * PATCH, self.y * PATCH, right * PATCH, bottom * PATCH]


@dataclass(frozen=True)
class Scrap:
    """A piece of a photograph that lies in the scene and is never asked about; patches, as in `Thing`."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Beside:
    """A shape that touches a plate: `thing` is on that `side` of `plate`."""

    plate: Thing
    thing: Thing
    side: str
