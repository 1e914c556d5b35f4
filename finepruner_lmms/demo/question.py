"""What is asked about a scene of either world, and how it is put to a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LETTERS = "ABCD"

# the instructions that the benchmarks put after a question
ONE_WORD = "\nAnswer the question using a single word or phrase."
ONE_LETTER = "\nAnswer with the option's letter from the given choices directly."
ONE_LETTER_ZH = "\n请直接回答选项字母。"
NO_OCR = "\nReference OCR token: "  # TextVQA's line of machine-read words, which here reads nothing
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


class Placed(Protocol):
    """Something in a picture."""

    @property
    def name(self) -> str:
        """What it is called: "star", or what is written on it."""

    def tokens(self) -> list[int]:
        """Its visual tokens, in raster order."""

    def box(self) -> list[int]:
        """Left, top, right and bottom, in pixels."""


@dataclass(frozen=True)
class Question:
    """`text` without options or instruction; `answer` as one writes it; for a choice, the right one of `options`.

    `subject` is what the question is about: the things whose tokens an answer needs.
    """

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    context: str = ""
    language: str = "en"
    subject: tuple[Placed, ...] = ()

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.options.index(self.answer)]

    def prompt(self, instruct: bool = True, ocr: bool = False) -> str:
        """The whole text put to the model: context, question, options, an empty line of OCR tokens, instruction."""
        context = f"Context: {self.context}\n" if self.context else ""
        options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False))
        if self.options:
            instruction = ONE_LETTER_ZH if self.language == "zh" else ONE_LETTER
        else:
            instruction = UNANSWERABLE + ONE_WORD if self.kind == "absent" else ONE_WORD
        return context + self.text + options + (NO_OCR if ocr else "") + (instruction if instruct else "")

    @property
    def evidence(self) -> list[list[int]]:
        """The box of each thing that an answer needs, in pixels; none where there is no such thing."""
        return [thing.box() for thing in self.subject]

    @property
    def expected(self) -> str:
        """What the model should say: the answer, or its letter."""
        return self.letter if self.options else self.answer


def told_color(rng: random.Random, shapes: Sequence[str], colors: Sequence[str]) -> Question:
    """A choice of four whose answer the context tells, whatever the picture shows."""
    shape, color = rng.choice(shapes), rng.choice(colors)
    options = [*rng.sample([name for name in colors if name != color], 3), color]
    rng.shuffle(options)
    text = f"What color is the {shape} in the text?"
    return Question("told", text, color, tuple(options), context=f"The text says the {shape} is {color}.")
