"""Several questions behind one picture, in one sequence: none sees another, and each stands where it would alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo.hard.choices import ask
from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.question import LETTERS, Placed, Question
from finepruner_lmms.demo.scenes import GRID

_TRUTHS: dict[str, Callable[[Sequence[Placed]], str]] = {
    "written": lambda subject: subject[0].name,
    "number": lambda subject: str(len(subject)),
}
"""Kinds that end in a claim, and what is true of what they are about."""
_TRIES = 12  # for each question that a scene is to be asked


@dataclass
class Packed:
    """Token ids, positions and what to say next (-100: nothing) `[B, L]`; `mask` `[B, 1, L, L]`: who sees whom.

    Inside questions, what a claim should say is asked for, too.

    The visual tokens stand at `prefix` … `prefix + visual`. `spans` names each question's answer: its kind, row, first
    and last place that is to say something.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor
    prefix: int
    spans: list[tuple[str, int, int, int]]


class Packer:
    """Turns scenes into packed batches with the processor's own tokenizer."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        whole, _, after = vicuna_v1("", has_image=True).partition("<image>")
        self._prefixes = {True: tokenizer(whole)["input_ids"], False: tokenizer("USER:")["input_ids"]}
        self.before, self.after = after.partition("ASSISTANT")[0].rstrip(" "), " ASSISTANT:"

    def pack(
        self,
        scenes: Sequence[Scene],
        places: Tensor,
        weights: Mapping[str, float],
        number: int,
        instructed: float,
        rng: random.Random,
        system: bool = True,
        compact: bool = False,
    ) -> Packed:
        """Up to `number` questions for each scene, after the visual tokens of `places` `[B, K]` in the 24×24 plane.

        Positions are those of a whole picture of which other tokens were dropped; with `compact`, tokens close ranks.
        A share `instructed` is asked as benchmarks do; all behind the system's sentence where `system` says so.
        """
        rows = [[self._segment(one, rng.random() < instructed, rng) for one in _some(scene, weights, number, rng)]
                for scene in scenes]  # fmt: skip
        prefix = self._prefixes[system]
        start = len(prefix) + places.shape[1]
        text = start if compact else len(prefix) + GRID * GRID
        length = start + max(sum(len(asked) + len(said) for _, asked, said, _ in row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        targets, owner = torch.full_like(ids, -100), torch.full_like(ids, -1)
        positions = torch.arange(length).repeat(len(rows), 1)
        if not compact:
            positions[:, len(prefix) : start] = len(prefix) + places
        ids[:, : len(prefix)] = torch.tensor(prefix)
        owner[:, :start] = 0
        spans = []
        for row, segments in enumerate(rows):
            at = start
            for place, (kind, asked, said, claimed) in enumerate(segments, 1):
                end, last = at + len(asked) + len(said), at + len(asked) - 1
                ids[row, at:end] = torch.tensor(asked + said)
                owner[row, at:end] = place
                positions[row, at:end] = torch.arange(text, text + end - at)
                targets[row, last : end - 1] = torch.tensor(said)
                for after, token in claimed.items():
                    targets[row, at + after - 1] = token
                spans.append((kind, row, last, end - 2))
                at = end
        seen = (owner[:, None] == owner[..., None]) | (owner[:, None] == 0)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (seen & causal) | torch.eye(length, dtype=torch.bool)
        return Packed(ids, positions, targets, mask[:, None], len(prefix), spans)

    def _segment(
        self, question: Question, instructed: bool, rng: random.Random
    ) -> tuple[str, list[int], list[int], dict[int, int]]:
        """Kind, tokens up to the answer, those of the answer and its end, and what else is said inside `asked`."""
        ocr = instructed and question.kind == "read" and rng.random() < 0.5  # TextVQA's prompt has an empty line of it
        text = self.before + question.prompt(instructed or question.kind == "absent", ocr) + self.after
        asked = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        said = self.tokenizer(question.expected, add_special_tokens=False)["input_ids"]
        return question.kind, asked, [*said, self.tokenizer.eos_token_id], self._inside(question, asked)

    def _inside(self, question: Question, asked: list[int]) -> dict[int, int]:
        """What is to be said inside a question, by the place in `asked` that it would stand at."""
        return self._options(question, asked) if question.options else self._claimed(question, asked)

    def _options(self, question: Question, asked: list[int]) -> dict[int, int]:
        """The answer in a word where the options begin, and behind each option whether it is the right one.

        A letter alone teaches little: that it stands for a word, and the word for what was asked, is learned in parts.
        """
        yes, no, line = (self.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "\n"))
        places = []
        for letter, option in zip(LETTERS, question.options, strict=True):
            mark = [line, *self.tokenizer(f"{letter}. {option}", add_special_tokens=False)["input_ids"]]
            start = next(at for at in range(len(asked)) if asked[at : at + len(mark)] == mark)
            places.append((start, start + len(mark)))
        told = self.tokenizer(question.answer, add_special_tokens=False)["input_ids"][0]
        right = question.options.index(question.answer)
        return {places[0][0]: told} | {end: yes if at == right else no for at, (_, end) in enumerate(places)}

    def _claimed(self, question: Question, asked: list[int]) -> dict[int, int]:
        """The places in `asked` of what a yes-or-no question claims of a thing, and the token that would be true there.

        To say no to a number, a model must read the right one: so that is also asked where the wrong one stands.
        """
        if question.kind not in _TRUTHS:
            return {}
        claim = question.text.rstrip("?").rpartition(" ")[2]
        said, true = (self.tokenizer(text, add_special_tokens=False)["input_ids"]
                      for text in (claim, _TRUTHS[question.kind](question.subject)))  # fmt: skip
        start = max(at for at in range(len(asked)) if asked[at : at + len(said)] == said)
        return dict(enumerate(true, start)) if len(true) == len(said) else {}


def _some(scene: Scene, weights: Mapping[str, float], number: int, rng: random.Random) -> list[Question]:
    found: dict[str, Question] = {}
    for _ in range(_TRIES * number):
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if (question := ask(scene, kind, rng)) is not None:
            found.setdefault(question.text, question)
        if len(found) == number:
            break
    return list(found.values())
