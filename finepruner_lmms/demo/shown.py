"""A scene of the demo as a picture to try things on, with a question that it answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.questions import KINDS, ask
from finepruner_lmms.demo.scenes import IMAGE_SIZE, Scene, make_scene
from finepruner_lmms.errors import FieldError

WORD = "demo"
FIRST = 3
"""The scene that is shown where none is named."""
_MOST = 99_999


@dataclass(frozen=True, eq=False)
class Example:
    """A picture, a question as the benchmarks put it, and its answer; None where the question is the user's.

    `evidence` are the boxes of what the question is about, left, top, right and bottom, as shares of the picture.
    """

    image: Image.Image
    question: str
    expected: str | None
    evidence: tuple[tuple[float, float, float, float], ...] = ()


def is_scene(image: str) -> bool:
    """Whether a user asks for a scene: `demo`, or `demo:7`."""
    return image == WORD or image.startswith(f"{WORD}:")


def example(image: str, question: str | None = None) -> Example:
    """The scene of the test split that `demo` or `demo:7` names; `FieldError` for a scene that there is not.

    Without a question, its own: about a digit, or the first kind of question that the scene allows.
    """
    scene = make_scene("test", _number(image))
    if question is not None:
        known = {own.text: own for own in questions(scene)}
        own = known.get(question.strip())
        return Example(scene.image(), question, None) if own is None else _asked(scene, own)
    return _asked(scene, questions(scene)[0])


def questions(scene: Scene) -> list[Question]:
    """A question of each kind that the scene allows, about a digit first."""
    kinds = ["digit", *(kind for kind in KINDS if kind != "digit")]
    found = [ask(scene, kind, random.Random(scene.index)) for kind in kinds]
    return [one for one in found if one is not None]


def _asked(scene: Scene, question: Question) -> Example:
    boxes = tuple((a / IMAGE_SIZE, b / IMAGE_SIZE, c / IMAGE_SIZE, d / IMAGE_SIZE) for a, b, c, d in question.evidence)
    return Example(scene.image(), question.prompt(), question.expected, boxes)


def _number(image: str) -> int:
    _, colon, number = image.partition(":")
    if not colon:
        return FIRST
    if not number.isdecimal() or int(number) > _MOST:
        problem = f"got {image!r}; expected {WORD}, or {WORD}:<number> with a number up to {_MOST}"
        raise FieldError("IMAGE", problem, value=image)
    return int(number)
