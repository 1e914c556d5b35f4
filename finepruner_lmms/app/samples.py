"""Pictures to begin with: scenes of the demo, of which it is known what is right and what an answer needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from finepruner_lmms.demo.scenes import make_scene
from finepruner_lmms.demo.shown import Example, example, questions

_SCENES = ((3, "digit"), (1, "exist"), (0, "count"), (2, "digit"), (4, "shape"), (5, "read"))
"""Scenes of the test split, each with a kind of question."""


class Samples:
    """The scenes, written into a folder: `all` are their files, each with a question as the benchmarks put it."""

    def __init__(self, folder: Path) -> None:
        self.all: list[tuple[Path, Example]] = []
        self._known: dict[tuple[str, str], Example] = {}
        for number, kind in _SCENES:
            for question in questions(make_scene("test", number)):
                found = example(f"demo:{number}", question.text)
                self._known[_digest(found.image), found.question] = found
                if question.kind == kind:
                    file = folder / f"scene-{number}.png"
                    found.image.save(file)
                    self.all.append((file, found))

    def find(self, image: Image.Image, question: str) -> Example:
        """The question about the picture, with what is known of it: nothing, where they are not of our scenes."""
        return self._known.get((_digest(image), question.strip()), Example(image, question, None))


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()
