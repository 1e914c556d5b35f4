"""What can be asked of a scene without doubt, and what is nearly right."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.hard.things import SIZES, Thing


def fitting(scene: Scene, name: str = "", color: str = "", size: str = "") -> tuple[Thing, ...]:
    """The shapes that have each attribute given."""
    wanted = [(attribute, value) for attribute, value in (("name", name), ("color", color), ("size", size)) if value]
    return tuple(t for t in scene.shapes if all(getattr(t, attribute) == value for attribute, value in wanted))


def by_shape(scene: Scene) -> list[Thing]:
    """The shapes that size and shape tell from all others: "the small star" is clear."""
    seen = Counter((thing.size, thing.name) for thing in scene.shapes)
    return [thing for thing in scene.shapes if seen[thing.size, thing.name] == 1]


def by_color(scene: Scene) -> list[Thing]:
    """The shapes that size and colour tell from all others: "the small red object" is clear."""
    seen = Counter((thing.size, thing.color) for thing in scene.shapes)
    return [thing for thing in scene.shapes if seen[thing.size, thing.color] == 1]


def ranked(things: Sequence[Thing]) -> dict[str, Thing]:
    """ "largest", "second largest" and "smallest" → the one thing that is it; without those that several could be."""
    sizes = sorted({SIZES[thing.size] for thing in things}, reverse=True)
    groups = [[thing for thing in things if SIZES[thing.size] == size] for size in sizes]
    if len(groups) < 2:
        return {}
    found = {"largest": groups[0], "smallest": groups[-1]}
    if len(groups[0]) == 1:
        found["second largest"] = groups[1]
    return {word: group[0] for word, group in found.items() if len(group) == 1}


def number_of(rng: random.Random, number: str) -> str:
    """A number that differs in one digit."""
    place = rng.randrange(len(number))
    digits = [digit for digit in "0123456789" if digit != number[place] and (place or digit != "0")]
    return number[:place] + rng.choice(digits) + number[place + 1 :]
