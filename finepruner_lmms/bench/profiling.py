"""Profiling the heads of a model on scenes of the demo's tuning split, which no test question is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finepruner_lmms.bench.head_rows import last_rows
from finepruner_lmms.checkpoints.load import load_model
from finepruner_lmms.demo.question import ONE_WORD, Question
from finepruner_lmms.demo.scenes import make_scene
from finepruner_lmms.demo.shown import questions as questions_of
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads.criteria import Profiled, reliability, scores_of, weights_of
from finepruner_lmms.heads.profile import HeadProfile, profile_json

_FIRST = 1_000_000  # behind the scenes that the tuning miniatures are made of
_SHOWN = 10


@dataclass(frozen=True)
class Found:
    """A profile, by which criterion and how many questions, and how alike two halves of them rank the heads."""

    profile: HeadProfile
    criterion: str
    questions: int
    reliability: float

    def as_json(self) -> dict[str, Any]:
        """The object of the file: a profile, and how it was found."""
        how = {"criterion": self.criterion, "questions": self.questions, "reliability": round(self.reliability, 4)}
        return profile_json(self.profile) | how

    def told(self, file: Path) -> str:
        """What is said of it: the best heads, and how to use the file."""
        best = sorted(self.profile.weights, key=lambda one: (-one[2], one[:2]))[:_SHOWN]
        total = sum(weight for _, _, weight in self.profile.weights)
        lines = [f"{layer:5d} {head:4d} {100 * weight / total:6.1f} %" for layer, head, weight in best]
        every = (self.profile.layers - 1) * self.profile.heads
        return (
            f"{len(self.profile.weights)} of {every} heads count, by {self.criterion} on {self.questions} questions; "
            f"rank correlation of two halves {self.reliability:.2f}\n"
            + "\n".join(["layer head  of all", *lines])
            + f"\n{file}: head_strategy=profile,profile={file},layer={best[0][0] + 1} listens to layer {best[0][0]}\n"
        )


def measure(pretrained: str, criterion: str, count: int, device: str = "auto", dtype: str = "auto") -> Found:
    """Profile `pretrained` on `count` questions. `FieldError` for another family, and where no head counts."""
    model, processor = load_model(pretrained, dtype=dtype, device=device)
    if family_of(model).model_type != "llava":
        problem = f"{pretrained!r} is no LLaVA-1.5; which of its tokens show an object of a scene is not known"
        raise FieldError("--pretrained", problem, value=pretrained)
    asked, unasked, evidence = [], [], []
    for image, question in _tuning(count):
        asked.append(last_rows(model, processor, image, question.prompt()))
        unasked.append(last_rows(model, processor, image, ONE_WORD.strip()))
        evidence.append(_tokens(question, asked[-1].shape[-1]))
    scores = scores_of(Profiled(torch.stack(asked), torch.stack(unasked), torch.stack(evidence)), criterion)
    weights = weights_of(scores)
    if not weights:
        raise FieldError("--criterion", f"no head is above 0 by {criterion!r} on these questions", value=criterion)
    task = f"{criterion} on {count} questions about scenes of the demo's tuning split"
    layers, heads = scores.shape[1] + 1, scores.shape[2]
    found = HeadProfile(pretrained, pretrained, task, "finepruner profile", layers, heads, weights)
    return Found(found, criterion, count, reliability(scores))


def _tuning(count: int) -> Iterator[tuple[Image.Image, Question]]:
    """So many questions about something in a scene, each of another scene; kinds take turns."""
    index = taken = 0
    while taken < count:
        scene = make_scene("tuning", _FIRST + index)
        known = [question for question in questions_of(scene) if question.subject]
        index += 1
        if known:
            yield scene.image(), known[taken % len(known)]
            taken += 1


def _tokens(question: Question, num_visual_tokens: int) -> Tensor:
    """The visual tokens of what a question is about, `[N]` bool."""
    shown = torch.zeros(num_visual_tokens, dtype=torch.bool)
    shown[[token for thing in question.subject for token in thing.tokens()]] = True
    return shown
