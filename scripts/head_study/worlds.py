"""The two worlds that a model can be asked about: the easy one, and the crowded one (docs/hard_world.md)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo import questions as easy
from finepruner_lmms.demo import scenes as easy_scenes
from finepruner_lmms.demo.hard import choices as hard
from finepruner_lmms.demo.hard import scenes as hard_scenes
from finepruner_lmms.demo.question import ONE_WORD, Question

VISUAL = 576
FIRST_SCENE = 5_000_000  # behind every scene that a benchmark of the demo shows
# kinds whose answers need the picture and are one token; those told in the text measure nothing here
KINDS = ("exist", "color", "shape", "digit", "count", "verify", "pick", "number", "read", "choice", "choice_zh")


@dataclass(frozen=True)
class World:
    """Scenes of a split by number, and the kinds of questions whose answers need the picture."""

    make_scene: Callable[[str, int], Any]
    ask: Callable[..., Question | None]
    kinds: tuple[str, ...]

    def questions(
        self, split: str, number: int, count: int, rng: random.Random, kinds: tuple[str, ...] = ()
    ) -> list[Question]:
        """Up to `count` questions of different kinds about a scene; of `kinds`, if there are any."""
        scene = self.make_scene(split, number)
        found: list[Question] = []
        for kind in rng.sample(kinds or self.kinds, len(kinds or self.kinds)):
            question = self.ask(scene, kind, rng)
            if question is not None and len(found) < count:
                found.append(question)
        return found


WORLDS = {
    "easy": World(easy_scenes.make_scene, easy.ask, KINDS),
    "hard": World(hard_scenes.make_scene, hard.ask, tuple(kind for kind in hard.KINDS if kind != "told")),
}


@dataclass(frozen=True)
class Asked:
    """One question: the scene it is about, its words, its prompt, and the tokens that answer it, the end last.

    `nothing` is the prompt that asks nothing: the same picture with the instruction alone. `objects` and `subject` are
    `[N]` bool, the tokens of things, and of those that the answer hangs on.
    """

    scene: int
    kind: str
    question: str
    ids: list[int]
    answer: list[int]
    nothing: list[int]
    objects: np.ndarray
    subject: np.ndarray


def questions(
    processor: Any,
    config: Any,
    world: str,
    split: str,
    scenes: range,
    per_scene: int,
    rng: random.Random | None = None,
    kinds: tuple[str, ...] = (),
) -> Iterator[Asked]:
    """`per_scene` questions of different kinds about each of some scenes, counted from the first that is free.

    Each scene has its own chance, so that a deck in parts is the deck as a whole, unless `rng` is that of all.
    """
    which = WORLDS[world]
    for number in range(FIRST_SCENE + scenes.start, FIRST_SCENE + scenes.stop):
        own = random.Random(f"study {split} {number}") if rng is None else rng
        for question in which.questions(split, number, per_scene, own, kinds):
            yield _asked(processor, config, which.make_scene(split, number), number, question)


def _asked(processor: Any, config: Any, scene: Any, number: int, question: Question) -> Asked:
    def prompt(text: str) -> list[int]:
        whole = vicuna_v1(text, has_image=True).replace("<image>", "<image>" * VISUAL)
        return processor.tokenizer(whole)["input_ids"]

    answer = processor.tokenizer(question.expected, add_special_tokens=False)["input_ids"]
    subject = np.zeros(VISUAL, dtype=bool)
    for thing in question.subject:
        subject[thing.tokens()] = True
    end = config.text_config.eos_token_id
    nothing = prompt(ONE_WORD.strip())
    said = [*answer, end]
    ids = prompt(question.prompt())
    return Asked(number, question.kind, question.text, ids, said, nothing, scene.object_tokens(), subject)
