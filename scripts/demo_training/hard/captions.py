"""What a caption says of a picture: phrases in no order, none of which says where in the picture a thing is.

"a small red star", "a green plate", a word for each digit that is written somewhere, what a plate has beside it, and
how its number begins. As with captions from the web, nobody tells the tower which patches a phrase is about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from finepruner_lmms.demo.hard.clear import number_of
from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.hard.things import COLORS, SIDES, SIZES, Thing
from finepruner_lmms.demo.outlines import SHAPES

DIGITS = tuple("0123456789")
_BY = {word: f"by {word}" for word in (*COLORS, *SHAPES, *SIDES)}
ORDINALS = ("first", "second")
_SAYS = {(ordinal, digit): f"{ordinal} {digit}" for ordinal in ORDINALS for digit in DIGITS}
WORDS = ("", *SIZES, *COLORS, *SHAPES, "plate", *DIGITS, *_BY.values(), *_SAYS.values())
ATTRIBUTES = ("size", "color", "shape", "digit")
_PLACE = {word: place for place, word in enumerate(WORDS)}
Phrase = tuple[str, ...]
EVERY: tuple[Phrase, ...] = (
    *product(SIZES, COLORS, SHAPES), *((color, "plate") for color in COLORS), *((digit,) for digit in DIGITS)
)  # fmt: skip
"""All phrases that a list of what is in a picture can have."""
CHOICES: dict[str, tuple[tuple[Phrase, ...], ...]] = {
    family: tuple(tuple((color, "plate", _BY[word]) for word in words) for color in COLORS)
    for family, words in (("by-color", tuple(COLORS)), ("by-shape", SHAPES), ("by-side", tuple(SIDES)))
} | {
    ordinal: tuple(tuple((color, "plate", _SAYS[ordinal, digit]) for digit in DIGITS) for color in COLORS)
    for ordinal in ORDINALS
}
"""Sentences of captions of which at most one in a row is true.

They say what a plate has beside it, on which side of it, and the first two digits of its number.
"""


@dataclass(frozen=True)
class Captions:
    """Word numbers `[B, P, 3]` of the phrases of B captions; 0 where a phrase is shorter or there is none."""

    words: Tensor

    @property
    def present(self) -> Tensor:
        """`[B, P]`: whether there is such a phrase."""
        return self.words[..., 0] > 0


def spoken(word: str) -> str:
    """A word of `WORDS` as questions say it: "red" for "by red", "4" for "first 4"."""
    return word.rpartition(" ")[2]


def phrases(scene: Scene) -> list[Phrase]:
    """Those that are true of a scene, each once."""
    found: dict[Phrase, None] = {}
    for thing in scene.things:
        found |= dict.fromkeys(_of(thing))
    return list(found)


def chosen(scene: Scene) -> dict[str, list[int]]:
    """For each row of `CHOICES` the number of the sentence that is true of a scene; -100: none is."""
    beside = {pair.plate.color: pair for pair in scene.pairs}
    right = {family: [-100] * len(rows) for family, rows in CHOICES.items()}
    for row, color in enumerate(COLORS):
        if pair := beside.get(color):
            right["by-color"][row] = list(COLORS).index(pair.thing.color)
            right["by-shape"][row] = SHAPES.index(pair.thing.name)
            right["by-side"][row] = list(SIDES).index(pair.side)
            for ordinal, digit in zip(ORDINALS, pair.plate.name, strict=False):
                right[ordinal][row] = int(digit)
    return right


def near_miss(scene: Scene, attribute: str, rng: random.Random) -> list[Phrase] | None:
    """The phrases of the same scene with one thing's `attribute` changed; None where that makes no other caption."""
    fitting = [thing for thing in scene.things if thing.is_plate == (attribute == "digit")]
    if not fitting:
        return None
    wrong, told = rng.choice(fitting), []
    for thing in scene.things:
        told += _of(_changed(thing, attribute, rng)) if thing is wrong else _of(thing)
    changed = list(dict.fromkeys(told))
    return changed if set(changed) - set(phrases(scene)) else None


def _of(thing: Thing) -> list[Phrase]:
    if thing.is_plate:
        return [(thing.color, "plate"), *((digit,) for digit in thing.name)]
    return [(thing.size, thing.color, thing.name)]


def _changed(thing: Thing, attribute: str, rng: random.Random) -> Thing:
    given = {"name": thing.name, "color": thing.color, "size": thing.size}
    if attribute == "digit":
        given["name"] = number_of(rng, thing.name)
    else:
        field, pool = {
            "size": ("size", tuple(SIZES)),
            "color": ("color", tuple(COLORS)),
            "shape": ("name", SHAPES),
        }[attribute]
        given[field] = rng.choice([one for one in pool if one != given[field]])
    return Thing(**given, x=thing.x, y=thing.y, width=thing.width, height=thing.height)


def batch_of(captions: Sequence[Sequence[Phrase]]) -> Captions:
    """Captions as numbers."""
    words = torch.zeros(len(captions), max(map(len, captions)), 3, dtype=torch.long)
    for row, caption in enumerate(captions):
        for column, phrase in enumerate(caption):
            for place, word in enumerate(phrase):
                words[row, column, place] = _PLACE[word]
    return Captions(words)
