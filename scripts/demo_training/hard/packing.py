"""Several questions behind one picture, in one sequence: none sees another, and each stands where it would alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo_training.hard.steps import DIRECT, Steps, steps_of
from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo.hard.choices import ask
from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.scenes import GRID

_TRIES = 12  # for each question that a scene is to be asked


@dataclass
class Packed:
    """Token ids, positions and what to say next (-100: nothing) `[B, L]`.

    `segments` are the questions, each with its answer: row, first place, and the one after the last. `facts` and
    `verdicts` are what to say before the last layer, as in `demo_training.hard.steps`.

    The visual tokens stand at `prefix` … `prefix + visual`. `spans` names each question's answer: its kind, row, first
    and last place that is to say something.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    facts: Tensor
    verdicts: Tensor
    segments: list[tuple[int, int, int]]
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
        rows = [
            [self._segment(scene, one, rng.random() < instructed, rng) for one in _some(scene, weights, number, rng)]
            for scene in scenes
        ]
        prefix = self._prefixes[system]
        start = len(prefix) + places.shape[1]
        text = start if compact else len(prefix) + GRID * GRID
        length = start + max(sum(len(one.asked) + len(one.said) for one in row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        targets, facts, verdicts = (torch.full_like(ids, -100) for _ in range(3))
        positions = torch.arange(length).repeat(len(rows), 1)
        if not compact:
            positions[:, len(prefix) : start] = len(prefix) + places
        ids[:, : len(prefix)] = torch.tensor(prefix)
        spans, parts = [], []
        for row, segments in enumerate(rows):
            at = start
            for one in segments:
                end, last = at + len(one.asked) + len(one.said), at + len(one.asked) - 1
                ids[row, at:end] = torch.tensor(one.asked + one.said)
                parts.append((row, at, end))
                positions[row, at:end] = torch.arange(text, text + end - at)
                targets[row, last : end - 1] = torch.tensor(one.said)
                if one.kind in DIRECT:
                    facts[row, last : end - 1] = targets[row, last : end - 1]
                for into, steps in ((facts, one.steps.facts), (verdicts, one.steps.verdicts)):
                    for after, token in steps.items():
                        into[row, at + after - 1] = token
                spans.append((one.kind, row, last, end - 2))
                at = end
        return Packed(ids, positions, targets, facts, verdicts, parts, len(prefix), spans)

    def _segment(self, scene: Scene, question: Question, instructed: bool, rng: random.Random) -> _Segment:
        ocr = instructed and question.kind == "read" and rng.random() < 0.5  # TextVQA's prompt has an empty line of it
        text = self.before + question.prompt(instructed or question.kind == "absent", ocr) + self.after
        asked = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        said = self.tokenizer(question.expected, add_special_tokens=False)["input_ids"]
        steps = steps_of(scene, question, asked, self.tokenizer)
        return _Segment(question.kind, asked, [*said, self.tokenizer.eos_token_id], steps)


@dataclass(frozen=True)
class _Segment:
    """A question: the tokens up to the answer, those of the answer and its end, and the steps inside `asked`."""

    kind: str
    asked: list[int]
    said: list[int]
    steps: Steps


def _some(scene: Scene, weights: Mapping[str, float], number: int, rng: random.Random) -> list[Question]:
    found: dict[str, Question] = {}
    for _ in range(_TRIES * number):
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if (question := ask(scene, kind, rng)) is not None:
            found.setdefault(question.text, question)
        if len(found) == number:
            break
    return list(found.values())
