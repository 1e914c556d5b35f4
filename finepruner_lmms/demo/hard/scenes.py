"""Crowded scenes: 336×336 pixels of a real photograph, 15 to 30 things on it, and scraps that only distract.

A scene has 13 to 26 shapes (6 shapes, 8 colours, 3 sizes; many smaller than a patch) and 2 to 4 plates with numbers of
two to four handwritten digits. Beside each plate stands a small shape. Things fill whole patches, and are drawn with
some play inside. They cover 40 to 120 of the 576 visual tokens, more often than not more than a budget of 64 holds.

The three splits share no photograph, no digit sample and no scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from finepruner_lmms.demo.hard.drawing import draw
from finepruner_lmms.demo.hard.things import COLORS, SIDES, SIZES, Beside, Scrap, Thing
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.scenes import GRID, SPLITS

_SHARES = {"small": 0.4, "medium": 0.35, "large": 0.25}
_SHAPES, _PLATES, _SCRAPS, _DIGITS = (13, 26), (2, 4), (3, 6), (2, 4)  # least and most
_TRIES = 200


@dataclass(frozen=True)
class Scene:
    """What is in a picture of `grid`×`grid` patches; the picture itself is drawn when asked for."""

    split: str
    index: int
    things: tuple[Thing, ...]
    pairs: tuple[Beside, ...]
    scraps: tuple[Scrap, ...]
    grid: int = GRID

    @property
    def shapes(self) -> tuple[Thing, ...]:
        """The coloured shapes."""
        return tuple(thing for thing in self.things if not thing.is_plate)

    @property
    def plates(self) -> tuple[Thing, ...]:
        """The plates, each of another colour."""
        return tuple(thing for thing in self.things if thing.is_plate)

    def pixels(self) -> np.ndarray:
        """`[14 grid, 14 grid, 3]` uint8; 336×336 for a whole scene."""
        return draw(self.split, self.index, self.grid, self.things, self.scraps)

    def image(self) -> Image.Image:
        """The picture, RGB."""
        return Image.fromarray(self.pixels())

    def object_tokens(self) -> np.ndarray:
        """`[576]` bool: the visual tokens that show a thing, in a whole scene."""
        mask = np.zeros(GRID * GRID, dtype=bool)
        for thing in self.things:
            mask[thing.tokens()] = True
        return mask


def make_scene(split: str, index: int) -> Scene:
    """The scene number `index` of a split; the same in every process and order of calls."""
    rng = _chance("scene", split, index)
    return _lay_out(split, index, rng, GRID, rng.randint(*_SHAPES), rng.randint(*_PLATES), rng.randint(*_SCRAPS))


def make_view(split: str, index: int, grid: int) -> Scene:
    """A smaller picture with as crowded a scene, of `grid`×`grid` patches: what a tower can learn from first."""
    if not 6 <= grid <= GRID:
        raise ValueError(f"grid: got {grid}; expected 6 to {GRID}")
    rng, share = _chance(f"view {grid}", split, index), (grid / GRID) ** 2
    # of the few things of a small picture, a plate is often one: reading is what takes longest to learn; where there is
    # room for two there are two, since beside a single one stands whatever else is small
    least = rng.randrange(2) if grid < GRID // 2 else _PLATES[0]
    plates = min(_PLATES[1], max(least, round(rng.randint(*_PLATES) * share)))
    shapes = max(1, round(rng.randint(*_SHAPES) * share))
    return _lay_out(split, index, rng, grid, shapes, plates, round(rng.randint(*_SCRAPS) * share))


def _chance(what: str, split: str, index: int) -> random.Random:
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; known: {', '.join(SPLITS)}")
    return random.Random(f"hard {what} {split} {index}")


def _lay_out(split: str, index: int, rng: random.Random, grid: int, shapes: int, plates: int, scraps: int) -> Scene:
    floor = _Floor(grid, rng)
    pairs = [pair for color in rng.sample(list(COLORS), plates) if (pair := _plate(floor, rng, color)) is not None]
    things = [thing for pair in pairs for thing in (pair.plate, pair.thing)]
    while shapes > len(pairs):
        shapes -= 1
        size = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
        if place := floor.room(SIZES[size], SIZES[size]):
            things.append(_shape(rng, size, *place))
    pieces = [(rng.randint(2, 4), rng.randint(2, 4)) for _ in range(scraps)]
    scrapped = [Scrap(*place, *piece) for piece in pieces if (place := floor.room(*piece)) is not None]
    return Scene(split, index, tuple(things), tuple(pairs), tuple(scrapped), grid)


def _shape(rng: random.Random, size: str, x: int, y: int) -> Thing:
    return Thing(rng.choice(SHAPES), rng.choice(list(COLORS)), size, x, y, SIZES[size], SIZES[size])


def _plate(floor: _Floor, rng: random.Random, color: str) -> Beside | None:
    """A plate with a small shape at one side; None where there is no room for both."""
    digits = rng.randint(*_DIGITS) if floor.grid > 6 else 2
    side = rng.choice(list(SIDES))
    dx, dy = SIDES[side]
    width, height = digits + abs(dx), 1 + abs(dy)
    place = floor.room(width, height)
    if place is None:
        return None
    x, y = place[0] + (dx < 0), place[1] + (dy < 0)
    number = str(rng.randint(10 ** (digits - 1), 10**digits - 1))
    along = rng.randrange(digits) if dy else 0
    beside = x - 1 if dx < 0 else x + digits if dx > 0 else x + along, y + dy
    return Beside(Thing(number, color, "", x, y, digits, 1), _shape(rng, "small", *beside), side)


class _Floor:
    """Which patches are taken. Between two things is at least one free patch."""

    def __init__(self, grid: int, rng: random.Random) -> None:
        self.grid, self._rng = grid, rng
        self._taken = [0] * (grid + 2)  # a bit for each patch of a row; with a rim, so that a margin is inside

    def room(self, width: int, height: int) -> tuple[int, int] | None:
        """A free place of that many patches, now taken; None where none was found."""
        for _ in range(_TRIES):
            x, y = self._rng.randint(0, self.grid - width), self._rng.randint(0, self.grid - height)
            margin = ((1 << width + 2) - 1) << x
            if not any(row & margin for row in self._taken[y : y + height + 2]):
                for row in range(y + 1, y + 1 + height):
                    self._taken[row] |= ((1 << width) - 1) << x + 1
                return x, y
        return None
