"""Many questions behind one picture, in one sequence: what a training step is made of.

Questions do not see each other (a block mask), and each starts at the position it would have alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from demo_training.sizes import VISUAL
from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.questions import COLOR_NAMES, NEGATIVES, PLURAL, ask, existence
from finepruner_lmms.demo.scenes import COLORS_ZH, SHAPES_ZH, Scene

WORDS = (*COLOR_NAMES, *SHAPES, "no", "yes", *map(str, range(10)), "unanswerable")
_SHAPE_OF = {s: s for s in SHAPES} | {p: s for s, p in PLURAL.items()} | {zh[0]: s for s, zh in SHAPES_ZH.items()}
_COLOR_OF = {c: c for c in COLOR_NAMES} | {zh[0]: c for c, zh in COLORS_ZH.items()}
_ENGLISH = {zh: en for en, zh in (*COLORS_ZH.items(), *SHAPES_ZH.items())}


@dataclass
class Packed:
    """A batch of packed sequences, `[B, L]`; the lists number (row, column) places of supervision."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    prefix: int
    answers: list[tuple[int, int, int]] = field(default_factory=list)  # row, column, id to say next
    ends: list[tuple[int, int, int]] = field(default_factory=list)  # row, column, id of </s>
    kinds: list[str] = field(default_factory=list)  # of each answer
    meanings: list[tuple[int, int, int]] = field(default_factory=list)  # row, end of question, word of the answer
    mentions: list[tuple[int, int, int, int]] = field(default_factory=list)  # row, column, count, other word or -1
    options: list[tuple[int, int, int]] = field(default_factory=list)  # row, column of an option, is it right


@dataclass(frozen=True)
class _Segment:
    kind: str
    tokens: list[int]
    answer: int
    meaning: tuple[int, int]
    mentions: list[tuple[int, int, int]]
    options: list[tuple[int, int]]


class Packer:
    """Turns scenes into `Packed` batches with the processor's own tokenizer."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str, start: bool = False) -> list[int]:
        """Token ids of `text`, with the begin token where it starts a prompt."""
        if start:
            return self.tokenizer(text)["input_ids"]
        if text not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def prefix(self, system: bool) -> list[int]:
        """What stands before the visual tokens, with or without the system sentence."""
        whole = vicuna_v1("", has_image=True).partition("<image>")[0] if system else "USER:"
        return self.encode(whole, start=True)

    def pack(
        self,
        scenes: list[Scene],
        kept: Tensor,
        weights: dict[str, float],
        rng: random.Random,
        questions: int,
        instruct: float,
        system: bool,
        compact: bool,
        easy: float = 0.0,
    ) -> Packed:
        """`kept` `[B, K]`: the visual tokens shown. `compact` numbers them 0..K-1 instead of by their place.

        `easy` is the share of questions about the only digit of a scene that are left out.
        """
        count = kept.shape[1]
        prefix = self.prefix(system)
        start = len(prefix) + count
        rows = [
            self._segments(scene, kept[row], weights, rng, questions, instruct, easy)
            for row, scene in enumerate(scenes)
        ]
        length = start + max(sum(len(s.tokens) + 2 for s in row) for row in rows)
        length = -(-length // 8) * 8
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = torch.full((len(rows), length), pad)
        segment = torch.full((len(rows), length), -1)
        positions = torch.zeros(len(rows), length, dtype=torch.long)
        ids[:, : len(prefix)] = torch.tensor(prefix)
        segment[:, :start] = 0
        positions[:, : len(prefix)] = torch.arange(len(prefix))
        places = torch.arange(count).expand_as(kept) if compact else kept
        positions[:, len(prefix) : start] = len(prefix) + places
        first = len(prefix) + (count if compact else VISUAL)
        packed = Packed(ids, positions, torch.empty(0), len(prefix))
        for b, row in enumerate(rows):
            at = start
            for number, s in enumerate(row, 1):
                n = len(s.tokens) + 2
                ids[b, at : at + n] = torch.tensor([*s.tokens, s.answer, end])
                segment[b, at : at + n] = number
                positions[b, at : at + n] = torch.arange(first, first + n)
                last = at + len(s.tokens) - 1
                packed.answers.append((b, last, s.answer))
                packed.ends.append((b, last + 1, end))
                packed.kinds.append(s.kind)
                packed.meanings.append((b, at + s.meaning[0], s.meaning[1]))
                packed.mentions += [(b, at + j, matching, other) for j, matching, other in s.mentions]
                packed.options += [(b, at + j, right) for j, right in s.options]
                at += n
        same = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        packed.mask = ((same & causal) | torch.eye(length, dtype=torch.bool))[:, None]
        return packed

    def _segments(
        self,
        scene: Scene,
        kept: Tensor,
        weights: dict[str, float],
        rng: random.Random,
        questions: int,
        instruct: float,
        easy: float,
    ) -> list[_Segment]:
        shown = set(kept.tolist())
        segments: list[_Segment] = []
        tries = 0
        while len(segments) < questions and tries < 20 * questions:
            tries += 1
            kind = rng.choices(list(weights), list(weights.values()))[0]
            # one box answers for any colour: only two teach to look for the one that was named
            if kind in ("digit", "read") and len(scene.digits) == 1 and rng.random() < easy:
                continue
            question = _ask_in_training(scene, kind, rng)
            # what cannot be seen any more must not be asked for: the model would learn to guess
            if question is None or any(shown.isdisjoint(thing.tokens()) for thing in question.subject):
                continue
            told = rng.random() < instruct
            ocr = told and kind == "digit" and rng.random() < 0.6
            segments.append(self._segment(kind, question.prompt(told or kind == "absent", ocr), question, scene))
        return segments

    def _segment(self, kind: str, prompt: str, question: Question, scene: Scene) -> _Segment:
        tokens = self.encode(f"\n{prompt} ASSISTANT:")
        (answer,) = self.encode(question.expected)
        words = self.tokenizer.convert_ids_to_tokens(tokens)
        assert "<unk>" not in words, question
        begin = words.index("\n", 1) + 1 if question.context else 0
        end = next(j for j in range(begin, len(words)) if words[j] in "?？")
        mentions = []
        for j in range(0 if question.context else begin, 0 if question.context else end):
            if (mention := _mention(scene, words, j, end)) is not None:
                mentions.append((j, *mention))
        options = []
        if question.options:
            starts = [j for j in range(end, len(words) - 3) if words[j] == "\n" and words[j + 2] == "."]
            options = [(j + 3, int(words[j + 1] == question.letter)) for j in starts]
        meaning = WORDS.index(_ENGLISH.get(question.answer, question.answer))
        return _Segment(kind, tokens, answer, (end, meaning), mentions, options)


def _ask_in_training(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """The kinds of the benchmarks, and two that only serve to learn them."""
    if kind == "exist":
        return existence(scene, rng, None, rng.choice(NEGATIVES))
    if kind == "any":  # one attribute at a time
        yes = rng.random() < 0.5
        if rng.random() < 0.5:
            here = {thing.name for thing in scene.shapes}
            pool = sorted(here) if yes else [s for s in SHAPES if s not in here]
            subject = {thing.name: thing for thing in scene.shapes}
            text = "Is there a {} in the image?"
        else:
            here = {thing.color for thing in scene.things}
            pool = sorted(here) if yes else [c for c in COLOR_NAMES if c not in here]
            subject = {thing.color: thing for thing in scene.things}
            text = "Is there a {} object in the image?"
        if not pool:
            return None
        name = rng.choice(pool)
        return Question("any", text.format(name), "yes" if yes else "no", subject=(subject[name],) if yes else ())
    return ask(scene, kind, rng)


def _mention(scene: Scene, words: list[str], j: int, end: int) -> tuple[int, int] | None:
    """For a shape or colour word: how many things it fits (at most 4), and the other word of the only one."""
    shape, color = _SHAPE_OF.get(words[j]), _COLOR_OF.get(words[j])
    if shape is None and color is None:
        return None
    box = "box" in words[:end]
    if shape is not None:
        fitting = [thing for thing in scene.shapes if thing.name == shape]
    else:
        fitting = [thing for thing in (scene.digits if box else scene.shapes) if thing.color == color]
    other = -1
    if len(fitting) == 1:
        other = WORDS.index(fitting[0].color if shape is not None else fitting[0].name)
    return min(len(fitting), 4), other
