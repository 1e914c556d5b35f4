"""Questions about a scene, with their answers: what the demo model is trained on, and what its benchmarks ask.

Each kind is a function `(scene, rng, want) -> Question | None`; `None` where the scene allows no such question or no
unambiguous answer. `want` forces "yes" or "no" where a kind answers so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.question import Question, told_color
from finepruner_lmms.demo.scenes import COLORS, COLORS_ZH, SHAPES_ZH, Scene, Thing

PLURAL = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
NEGATIVES = ("adversarial", "popular", "random")
COLOR_NAMES = tuple(COLORS)

Maker = Callable[[Scene, random.Random, str | None], Question | None]
_MAKERS: dict[str, Maker] = {}


def _kind(name: str) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        _MAKERS[name] = make
        return make

    return add


def ask(scene: Scene, kind: str, rng: random.Random, answer: str | None = None) -> Question | None:
    """A question of `kind` about `scene`; `answer` forces "yes" or "no" where the kind answers so."""
    if kind not in _MAKERS:
        raise ValueError(f"kind: got {kind!r}; known: {', '.join(KINDS)}")
    return _MAKERS[kind](scene, rng, answer)


# -- what a scene allows ----------------------------------------------------------------------------------------------


def count_of(scene: Scene, shape: str) -> int:
    """How many of a shape there are."""
    return sum(thing.name == shape for thing in scene.shapes)


def single_shapes(scene: Scene) -> list[Thing]:
    """The shapes of which there is exactly one: "the star" is clear."""
    return [thing for thing in scene.shapes if count_of(scene, thing.name) == 1]


def single_colors(scene: Scene) -> list[Thing]:
    """The shapes whose colour nothing else has: "the red object" is clear."""
    colors = Counter(thing.color for thing in scene.things)
    return [thing for thing in scene.shapes if colors[thing.color] == 1]


def _other(rng: random.Random, pool: Sequence[str], *but: str) -> str:
    return rng.choice([name for name in pool if name not in but])


def _yes_no(rng: random.Random, want: str | None) -> bool:
    return rng.random() < 0.5 if want is None else want == "yes"


# -- kinds ------------------------------------------------------------------------------------------------------------


def existence(scene: Scene, rng: random.Random, want: str | None, negatives: str | None = None) -> Question | None:
    """Is a coloured shape there? `negatives` as POPE samples what is absent.

    "adversarial": shape and colour are both there, but not together; "popular": one of the two is; "random": any.
    """
    pairs = {(thing.name, thing.color): thing for thing in scene.shapes}
    if _yes_no(rng, want):
        name, color = rng.choice(sorted(pairs))
        return Question("exist", f"Is there a {color} {name} in the image?", "yes", subject=(pairs[name, color],))
    absent = [(s, c) for s in SHAPES for c in COLOR_NAMES if (s, c) not in pairs]
    shapes, colors = {s for s, _ in pairs}, {c for _, c in pairs}
    tempting = [(s, c) for s, c in absent if s in shapes and c in colors]
    popular = [(s, c) for s, c in absent if s in shapes or c in colors]
    how = negatives or ("adversarial" if rng.random() < 0.6 else "random")
    pool = {"adversarial": tempting, "popular": popular, "random": absent}[how]
    if not pool:
        return None
    name, color = rng.choice(pool)
    return Question("exist", f"Is there a {color} {name} in the image?", "no")


@_kind("exist")
def _exist(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    return existence(scene, rng, want)


@_kind("color")
def _color(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not (clear := single_shapes(scene)):
        return None
    thing = rng.choice(clear)
    return Question("color", f"What color is the {thing.name}?", thing.color, subject=(thing,))


@_kind("shape")
def _shape(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not (clear := single_colors(scene)):
        return None
    thing = rng.choice(clear)
    return Question("shape", f"What shape is the {thing.color} object?", thing.name, subject=(thing,))


@_kind("digit")
def _digit(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    thing = rng.choice(scene.digits)
    return Question("digit", f"What digit is written in the {thing.color} box?", thing.name, subject=(thing,))


@_kind("count")
def _count(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    wanted = rng.randrange(4)
    shape = rng.choice([s for s in SHAPES if count_of(scene, s) == wanted] or list(SHAPES))
    subject = tuple(thing for thing in scene.shapes if thing.name == shape)
    return Question("count", f"How many {PLURAL[shape]} are there?", str(len(subject)), subject=subject)


@_kind("verify")
def _verify(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    if not (clear := single_shapes(scene)):
        return None
    thing, yes = rng.choice(clear), _yes_no(rng, want)
    here = [t.color for t in scene.things if t.color != thing.color]
    color = (
        thing.color
        if yes
        else rng.choice(here)
        if here and rng.random() < 0.7
        else _other(rng, COLOR_NAMES, thing.color)
    )
    return Question("verify", f"Is the {thing.name} {color}?", "yes" if yes else "no", subject=(thing,))


@_kind("pick")
def _pick(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    if not (clear := single_shapes(scene)):
        return None
    thing = rng.choice(clear)
    pair = [thing.color, _other(rng, COLOR_NAMES, thing.color)]
    rng.shuffle(pair)
    return Question("pick", f"Is the {thing.name} {pair[0]} or {pair[1]}?", thing.color, subject=(thing,))


@_kind("number")
def _number(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    yes = _yes_no(rng, want)
    counts = {shape: count_of(scene, shape) for shape in SHAPES}
    asked = [(s, n) for s in SHAPES for n in (1, 2, 3) if (counts[s] == n) == yes and counts[s] > 0]
    if not asked:
        return None
    # as many of one as of several, so that the number word alone says nothing
    number = rng.choice(sorted({n for _, n in asked}))
    shape = rng.choice([s for s, n in asked if n == number])
    text = f"Is there only one {shape}" if number == 1 else f"Are there {NUMBERS[number]} {PLURAL[shape]}"
    subject = tuple(thing for thing in scene.shapes if thing.name == shape)
    return Question("number", f"{text} in the image?", "yes" if yes else "no", subject=subject)


@_kind("read")
def _read(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    thing, yes = rng.choice(scene.digits), _yes_no(rng, want)
    digit = thing.name if yes else _other(rng, tuple("0123456789"), thing.name)
    return Question("read", f"Is the digit in the {thing.color} box {digit}?", "yes" if yes else "no", subject=(thing,))


@_kind("choice")
def _choice(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    return _multiple(scene, rng, "choice", "en")


@_kind("choice_zh")
def _choice_zh(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    return _multiple(scene, rng, "choice_zh", "zh")


def _multiple(scene: Scene, rng: random.Random, kind: str, language: str) -> Question | None:
    by_color, by_shape = single_colors(scene), single_shapes(scene)
    if not by_color and not by_shape:
        return None
    chinese = language == "zh"
    pool: tuple[str, ...]
    if by_color and (rng.random() < 0.5 or not by_shape):
        thing, words = rng.choice(by_color), SHAPES_ZH
        text = f"{COLORS_ZH[thing.color]}的物体是什么形状？" if chinese else f"What shape is the {thing.color} object?"
        right, pool = thing.name, SHAPES
    else:
        thing, words = rng.choice(by_shape), COLORS_ZH
        text = f"{SHAPES_ZH[thing.name]}是什么颜色？" if chinese else f"What color is the {thing.name}?"
        right, pool = thing.color, COLOR_NAMES
    options = [*rng.sample([name for name in pool if name != right], 3), right]
    rng.shuffle(options)
    shown = tuple(words[name] for name in options) if chinese else tuple(options)
    answer = words[right] if chinese else right
    return Question(kind, text, answer, shown, language=language, subject=(thing,))


@_kind("absent")
def _absent(scene: Scene, rng: random.Random, want: str | None) -> Question | None:
    """VizWiz: half of the questions cannot be answered, because there is no such shape."""
    missing = [shape for shape in SHAPES if count_of(scene, shape) == 0]
    clear = single_shapes(scene)
    answerable = rng.random() < 0.5 if want is None else want != "unanswerable"
    if answerable:
        if not clear:
            return None
        thing = rng.choice(clear)
        return Question("absent", f"What color is the {thing.name}?", thing.color, subject=(thing,))
    return Question("absent", f"What color is the {rng.choice(missing)}?", "unanswerable") if missing else None


@_kind("told")
def _told(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    """ScienceQA: see `told_color`."""
    return told_color(rng, SHAPES, COLOR_NAMES)


KINDS = tuple(_MAKERS)
