"""Questions about something in a scene of a tuning split, which no test question is about, to profile heads on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finepruner_lmms.demo import scenes, shown
from finepruner_lmms.demo.hard import scenes as hard
from finepruner_lmms.demo.hard.choices import KINDS, ask
from finepruner_lmms.demo.question import Question

_FIRST = 1_000_000  # behind the scenes that the tuning miniatures are made of


def _easy(index: int) -> tuple[Any, list[Question]]:
    scene = scenes.make_scene("tuning", index)
    return scene, shown.questions(scene)


def _hard(index: int) -> tuple[Any, list[Question]]:
    scene, rng = hard.make_scene("tuning", index), random.Random(f"profile {index}")
    found = [ask(scene, kind, rng) for kind in KINDS]
    return scene, [one for one in found if one is not None]


WORLDS: dict[str, Callable[[int], tuple[Any, list[Question]]]] = {
    "demo": _easy,
    "demo-tuning": _easy,
    "demo-hard-tuning": _hard,
}
"""By the word that `--data` has for them: a scene and what can be asked about it."""


def tuning_questions(data: str, count: int) -> Iterator[tuple[Image.Image, Question]]:
    """So many questions about something in a scene, each of another scene; kinds take turns."""
    index = taken = 0
    while taken < count:
        scene, asked = WORLDS[data](_FIRST + index)
        known = [question for question in asked if question.subject]
        index += 1
        if known:
            yield scene.image(), known[taken % len(known)]
            taken += 1


def evidence_of(question: Question, num_visual_tokens: int) -> Tensor:
    """The visual tokens of what a question is about, `[N]` bool."""
    there = torch.zeros(num_visual_tokens, dtype=torch.bool)
    there[[token for thing in question.subject for token in thing.tokens()]] = True
    return there
