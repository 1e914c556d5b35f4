"""Pictures to begin with: scenes of the demo, whose right answers are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from finepruner_lmms.demo.scenes import make_scene
from finepruner_lmms.demo.shown import questions

_SCENES = ((3, "digit"), (1, "exist"), (0, "count"), (2, "digit"), (4, "shape"), (5, "read"))
"""Scenes of the test split, each with a kind of question."""


@dataclass(frozen=True)
class Sample:
    """A picture as a file, a question about it as the benchmarks put it, and what the model should say."""

    file: Path
    question: str
    expected: str


class Samples:
    """The scenes, written into a folder."""

    def __init__(self, folder: Path) -> None:
        self.all: list[Sample] = []
        self._expected: dict[tuple[str, str], str] = {}
        for number, kind in _SCENES:
            scene = make_scene("test", number)
            (question,) = (one for one in questions(scene) if one.kind == kind)
            image, file = scene.image(), folder / f"scene-{number}.png"
            image.save(file)
            self.all.append(Sample(file, question.prompt(), question.expected))
            for one in questions(scene):
                for text in (one.text, one.prompt()):
                    self._expected[_digest(image), text] = one.expected

    def expected(self, image: Image.Image, question: str) -> str | None:
        """The right answer, where the picture is one of ours and the question one that we know of it."""
        return self._expected.get((_digest(image), question.strip()))


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()
