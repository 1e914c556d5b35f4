"""Choices among four options, in English and Chinese; `ask` for every kind of question."""

from __future__ import annotations

import random
from dataclasses import replace

from finepruner_lmms.demo.hard.clear import number_of
from finepruner_lmms.demo.hard.questions import COLOR_NAMES, MAKERS, kind
from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.hard.things import COLORS_ZH, SIDES, SIDES_ZH, SIZES_ZH, Thing
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.question import Question, told_color
from finepruner_lmms.demo.scenes import SHAPES_ZH

_ZH = COLORS_ZH | SHAPES_ZH | SIDES_ZH
_VEHICLES = ("bus", "train", "taxi", "ship", "truck", "tram")


def ask(scene: Scene, name: str, rng: random.Random, answer: str | None = None) -> Question | None:
    """A question of that kind about `scene`; `answer` forces "yes" or "no" where the kind answers so."""
    if name not in MAKERS:
        raise ValueError(f"kind: got {name!r}; known: {', '.join(KINDS)}")
    return MAKERS[name](scene, rng, answer)


@kind("choice")
def _choice(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    return _multiple(scene, rng, "choice", chinese=False)


@kind("choice_zh")
def _choice_zh(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    return _multiple(scene, rng, "choice_zh", chinese=True)


def _multiple(scene: Scene, rng: random.Random, name: str, chinese: bool) -> Question | None:
    """One of five subjects: a colour, a shape, what is beside a plate, on which side it is, or a number."""
    subject = rng.choice(("color", "shape", "beside", "side", "read"))
    asked = MAKERS[subject](scene, rng, None)
    if asked is None:
        return None
    if subject == "read":
        pool: set[str] = set()
        while len(pool) < 3:
            pool.add(number_of(rng, asked.answer))
        wrong = sorted(pool)
    else:
        known = next(names for names in (COLOR_NAMES, SHAPES, tuple(SIDES)) if asked.answer in names)
        wrong = rng.sample([one for one in known if one != asked.answer], 3)
    options = [*wrong, asked.answer]
    rng.shuffle(options)
    if not chinese:
        return replace(asked, kind=name, options=tuple(options))
    said = {one: _ZH.get(one, one) for one in options}
    shown = tuple(said.values())
    return replace(asked, kind=name, text=_in_chinese(asked), answer=said[asked.answer], options=shown, language="zh")


def _in_chinese(asked: Question) -> str:
    first, *_ = (thing for thing in asked.subject if isinstance(thing, Thing))
    color, what, size = COLORS_ZH[first.color], SHAPES_ZH.get(first.name, ""), SIZES_ZH.get(first.size, "")
    texts = {
        "color": f"{size}的{what}是什么颜色？",
        "shape": f"{size}的{color}物体是什么形状？",
        "read": f"{color}牌子上的数字是什么？",
        "side": f"{color}牌子旁边的物体在哪一边？",
        "beside": f"{color}牌子旁边的物体是什么{'颜色' if asked.answer in COLORS_ZH else '形状'}？",
    }
    return texts[asked.kind]


@kind("told")
def _told(_scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    """ScienceQA: see `told_color`."""
    return told_color(rng, SHAPES, COLOR_NAMES)


@kind("legend")
def _legend(scene: Scene, rng: random.Random, _want: str | None) -> Question | None:
    """ScienceQA: the context says what a plate stands for, the picture which number it has."""
    if len(scene.plates) < 2:
        return None
    plates = rng.sample(scene.plates, 2)
    names = rng.sample(_VEHICLES, 2)
    right = plates[0]
    context = "The {} has the {} plate. The {} has the {} plate.".format(
        *(word for name, plate in sorted(zip(names, plates, strict=True)) for word in (name, plate.color))
    )
    wrong = {plates[1].name} - {right.name}
    while len(wrong) < 3:
        wrong.add(number_of(rng, right.name))
    options = [*sorted(wrong), right.name]
    rng.shuffle(options)
    text = f"What is the number of the {names[0]}?"
    return Question("legend", text, right.name, tuple(options), context=context, subject=(right,))


KINDS = tuple(MAKERS)
