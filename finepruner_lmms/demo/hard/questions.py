"""Questions about a crowded scene, each with its answer and the things that the answer hangs on.

Each kind is a function `(scene, rng, want) -> Question | None`; `None` where the scene allows no such question or no
unambiguous answer. `want` forces "yes" or "no" where a kind answers so. Wrong things to say are near: what is absent
differs from something present in one attribute, and a wrong number in one digit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from finepruner_lmms.demo.hard.clear import by_color, by_shape, fitting, number_of, ranked
from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.hard.things import COLORS, SIDES, SIZES, Thing
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.question import Question

PLURAL = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
COLOR_NAMES = tuple(COLORS)
MOST = 5
"""The largest number that is asked for."""
NEGATIVES = ("adversarial", "popular", "random")
Maker = Callable[[Scene, random.Random, str | None], Question | None]
MAKERS: dict[str, Maker] = {}


def kind(name: str) -> Callable[[Maker], Maker]:
    """Enrols a kind of question."""

    def add(make: Maker) -> Maker:
        MAKERS[name] = make
        return make

    return add


def other(rng: random.Random, pool: Sequence[str], *but: str) -> str:
    """One of `pool` that is none of `but`."""
    return rng.choice([name for name in pool if name not in but])


def _yes(rng: random.Random, want: str | None) -> bool:
    return rng.random() < 0.5 if want is None else want == "yes"


def _said(yes: bool) -> str:
    return "yes" if yes else "no"


def existence(scene: Scene, rng: random.Random, want: str | None, negatives: str | None = None) -> Question | None:
    """Is a thing of that size, colour and shape there? `negatives` as POPE samples what is absent.

    "adversarial": it differs from something present in one attribute, and its near misses are the evidence;
    "popular": its colour and shape are both there, but not together; "random": any.
    """
    here = {(t.size, t.color, t.name): t for t in scene.shapes}
    if _yes(rng, want):
        size, color, name = rng.choice(sorted(here))
        thing = here[size, color, name]
        return Question("exist", f"Is there a {size} {color} {name} in the image?", "yes", subject=(thing,))
    absent = [(s, c, n) for s in SIZES for c in COLORS for n in SHAPES if (s, c, n) not in here]
    together, colors, names = {(c, n) for _, c, n in here}, {c for _, c, _ in here}, {n for _, _, n in here}
    pools = {
        "adversarial": [what for what in absent if any(_differ(what, one) == 1 for one in here)],
        "popular": [w for w in absent if w[1] in colors and w[2] in names and w[1:] not in together],
        "random": absent,
    }
    pool = pools[negatives or ("adversarial" if rng.random() < 0.6 else "random")]
    if not pool:
        return None
    what = rng.choice(pool)
    near = tuple(thing for key, thing in here.items() if _differ(what, key) == 1)
    return Question("exist", f"Is there a {' '.join(what)} in the image?", "no", subject=near)


def _differ(one: tuple[str, ...], two: tuple[str, ...]) -> int:
    return sum(a != b for a, b in zip(one, two, strict=True))


@kind("exist")
def _exist(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    return existence(scene, rng, want)


@kind("color")
def _color(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not (clear := by_shape(scene)):
        return None
    thing = rng.choice(clear)
    return Question("color", f"What color is the {thing.size} {thing.name}?", thing.color, subject=(thing,))


@kind("shape")
def _shape(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not (clear := by_color(scene)):
        return None
    thing = rng.choice(clear)
    return Question("shape", f"What shape is the {thing.size} {thing.color} object?", thing.name, subject=(thing,))


@kind("read")
def _read(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not scene.plates:
        return None
    plate = rng.choice(scene.plates)
    return Question("read", f"What number is on the {plate.color} plate?", plate.name, subject=(plate,))


@kind("written")
def _written(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    if not scene.plates:
        return None
    plate, yes = rng.choice(scene.plates), _yes(rng, want)
    number = plate.name if yes else number_of(rng, plate.name)
    return Question("written", f"Is the number on the {plate.color} plate {number}?", _said(yes), subject=(plate,))


@kind("count")
def _count(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    """By two attributes; as many of each number as the scene allows."""
    words = {f"{size} {color} objects": fitting(scene, color=color, size=size) for size in SIZES for color in COLORS}
    words |= {f"{size} {PLURAL[name]}": fitting(scene, name=name, size=size) for size in SIZES for name in SHAPES}
    wanted = rng.choice(sorted({len(things) for things in words.values() if len(things) <= MOST}))
    text = rng.choice([word for word, things in words.items() if len(things) == wanted])
    return Question("count", f"How many {text} are there?", str(wanted), subject=words[text])


@kind("number")
def _number(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    """Is it that many? A wrong number is one off."""
    yes = _yes(rng, want)
    pairs = [(size, color, fitting(scene, color=color, size=size)) for size in SIZES for color in COLORS]
    pool = [one for one in pairs if 1 <= len(one[2]) <= MOST - 1]
    if not pool:
        return None
    size, color, things = rng.choice(pool)
    asked = len(things) if yes else len(things) + (rng.choice((-1, 1)) if len(things) > 1 else 1)
    text = f"Is the number of {size} {color} objects in the image {asked}?"
    return Question("number", text, _said(yes), subject=things)


@kind("verify")
def _verify(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    if not (clear := by_shape(scene)):
        return None
    thing, yes = rng.choice(clear), _yes(rng, want)
    # the wrong colour is one that the shape has in another size, where there is one
    near = sorted({t.color for t in fitting(scene, name=thing.name)} - {thing.color})
    color = thing.color if yes else rng.choice(near) if near else other(rng, COLOR_NAMES, thing.color)
    return Question("verify", f"Is the {thing.size} {thing.name} {color}?", _said(yes), subject=(thing,))


@kind("pick")
def _pick(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not (clear := by_shape(scene)):
        return None
    thing = rng.choice(clear)
    pair = [thing.color, other(rng, COLOR_NAMES, thing.color)]
    rng.shuffle(pair)
    text = f"Is the {thing.size} {thing.name} {pair[0]} or {pair[1]}?"
    return Question("pick", text, thing.color, subject=(thing,))


@kind("beside")
def _beside(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    """A relation, and what is on the other end of it."""
    if not scene.pairs:
        return None
    pair = rng.choice(scene.pairs)
    word, answer = rng.choice((("color", pair.thing.color), ("shape", pair.thing.name)))
    text = f"What {word} is the object next to the {pair.plate.color} plate?"
    return Question("beside", text, answer, subject=(pair.plate, pair.thing))


@kind("side")
def _side(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not scene.pairs:
        return None
    pair = rng.choice(scene.pairs)
    text = f"On which side of the {pair.plate.color} plate is the object next to it?"
    return Question("side", text, pair.side, subject=(pair.plate, pair.thing))


@kind("place")
def _place(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    """Is it on that side? A wrong one is the opposite."""
    if not scene.pairs:
        return None
    pair, yes = rng.choice(scene.pairs), _yes(rng, want)
    dx, dy = SIDES[pair.side]
    side = pair.side if yes else next(name for name, step in SIDES.items() if step == (-dx, -dy))
    where = f"{side} it" if side in ("above", "below") else f"on its {side}"
    text = f"Is the object next to the {pair.plate.color} plate {where}?"
    return Question("place", text, _said(yes), subject=(pair.plate, pair.thing))


@kind("rank")
def _rank(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    """The colour of the largest, the second largest or the smallest of a shape, where its size is no other's."""
    found: list[tuple[str, str, Thing]] = []
    for name in SHAPES:
        found += [(word, name, thing) for word, thing in ranked(fitting(scene, name=name)).items()]
    if not found:
        return None
    word = rng.choice(sorted({word for word, _, _ in found}))
    _, name, thing = rng.choice([one for one in found if one[0] == word])
    return Question("rank", f"What color is the {word} {name}?", thing.color, subject=fitting(scene, name=name))


@kind("more")
def _more(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    """Which of two colours or shapes is on more things: a question about the whole scene."""
    yes = _yes(rng, want)
    groups = {f"{color} objects": fitting(scene, color=color) for color in COLORS}
    if rng.random() < 0.5:
        groups = {PLURAL[name]: fitting(scene, name=name) for name in SHAPES}
    unlike = [(a, b) for a in groups for b in groups if len(groups[a]) >= len(groups[b]) + 2]
    if not unlike:
        return None
    more, less = rng.choice(unlike)
    first, second = (more, less) if yes else (less, more)
    subject = groups[more] + groups[less]
    return Question("more", f"Are there more {first} than {second} in the image?", _said(yes), subject=subject)


@kind("absent")
def _absent(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    """VizWiz: half of the questions cannot be answered, because the shape is there in other sizes only."""
    answerable = rng.random() < 0.5 if want is None else want != "unanswerable"
    if answerable:
        clear = by_shape(scene)
        if not clear:
            return None
        thing = rng.choice(clear)
        return Question("absent", f"What color is the {thing.size} {thing.name}?", thing.color, subject=(thing,))
    missing = [(s, n) for s in SIZES for n in SHAPES if fitting(scene, name=n) and not fitting(scene, name=n, size=s)]
    if not missing:
        return None
    size, name = rng.choice(missing)
    return Question("absent", f"What color is the {size} {name}?", "unanswerable", subject=fitting(scene, name=name))
