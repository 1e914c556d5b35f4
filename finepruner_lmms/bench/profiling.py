"""Profiling the heads of a model on questions whose evidence is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finepruner_lmms.bench.answer_gradient import answer_gradient
from finepruner_lmms.bench.head_rows import last_rows
from finepruner_lmms.bench.profiling_questions import evidence_of, tuning_questions
from finepruner_lmms.checkpoints.load import load_model
from finepruner_lmms.demo.question import ONE_WORD
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads.controls import DRAWS, HeldOut, control, held_out
from finepruner_lmms.heads.criteria import Profiled, mean_weights, named_weights, reliability, scores_of
from finepruner_lmms.heads.profile import HeadProfile, profile_json

_SHOWN = 10
_CONTROLS = {
    "heads": "its weights on other heads of the layers",
    "weights": "its heads with random weights",
    "noise": "all heads by noise",
}


@dataclass(frozen=True)
class Found:
    """A profile, by which criterion and how many questions.

    `reliability` is how alike two halves of them rank the heads; `held_out` how well heads found on one half find the
    evidence of the other. `control` is what the profile itself was made into, with its seed, if anything.
    """

    profile: HeadProfile
    criterion: str
    questions: int
    reliability: float
    held_out: HeldOut
    control: tuple[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """The object of the file: a profile, and how it was found."""
        how: dict[str, Any] = {"criterion": self.criterion, "questions": self.questions}
        how |= {"reliability": round(self.reliability, 4)}
        if self.control is not None:
            how |= {"control": self.control[0], "seed": self.control[1]}
        shares = {"profile": self.held_out.profile, "alike": self.held_out.alike, "chance": self.held_out.chance}
        shares |= {kind: mean for kind, mean, _, _ in self.held_out.controls}
        return profile_json(self.profile) | how | {"held_out": {name: round(one, 4) for name, one in shares.items()}}

    def told(self, file: Path) -> str:
        """What is said of it: the best heads, how far they can be believed, and how to use the file."""
        best = sorted(self.profile.weights, key=lambda one: (-one[2], one[:2]))[:_SHOWN]
        total = sum(weight for _, _, weight in self.profile.weights)
        lines = [f"{layer:5d} {head:4d} {100 * weight / total:6.1f} %" for layer, head, weight in best]
        every = (self.profile.layers - 1) * self.profile.heads
        drop = best[0][0] + 1
        lines = [
            f"{len(self.profile.weights)} of {every} heads count, by {self.criterion} on {self.questions} questions; "
            f"rank correlation of two halves {self.reliability:.2f}",
            "layer head  of all",
            *lines,
            f"evidence among the best tokens, in percent, of questions not profiled; controls: {DRAWS} draws",
            *(f"{100 * share:7.1f}  {what}" for share, what in self._compared()),
            f"{file}: head_strategy=profile,profile={file},layer={drop} listens to the heads of layers 0 to {drop - 1}",
        ]
        if self.control is not None:
            kind, seed = self.control
            lines.append(f"The file is a control, drawn by seed {seed}: {_CONTROLS[kind]}.")
        return "\n".join(lines) + "\n"

    def _compared(self) -> list[tuple[float, str]]:
        one = self.held_out
        drawn = [
            (mean, f"{_CONTROLS[kind]} ({100 * low:.1f} to {100 * high:.1f})") for kind, mean, low, high in one.controls
        ]
        return [(one.profile, "the profile"), (one.alike, "all heads alike"), *drawn, (one.chance, "tokens at random")]


def measure(
    pretrained: str,
    criterion: str,
    count: int,
    device: str = "auto",
    dtype: str = "auto",
    *,
    data: str = "demo",
    controlled: tuple[str, int] | None = None,
) -> Found:
    """Profile `pretrained` on `count` questions of `data`. `FieldError` for another family, and where no head counts.

    `controlled` makes the control of that kind by that seed in place of the profile (`heads.controls`).
    """
    model, processor = load_model(pretrained, dtype=dtype, device=device)
    if family_of(model).model_type != "llava":
        problem = f"{pretrained!r} is no LLaVA-1.5; which of its tokens show an object of a scene is not known"
        raise FieldError("--pretrained", problem, value=pretrained)
    seen = _look(model, processor, data, count, gradient=criterion == "gradient")
    scores = scores_of(seen, criterion)
    weights = mean_weights(scores)
    if not weights.any():
        raise FieldError("--criterion", f"no head is above 0 by {criterion!r} on these questions", value=criterion)
    task = f"{criterion} on {count} questions about scenes of the tuning split of {data}"
    if controlled is not None:
        kind, seed = controlled
        weights, task = control(weights, kind, seed), f"a control ({_CONTROLS[kind]}, seed {seed}) of: {task}"
    layers, heads = scores.shape[1] + 1, scores.shape[2]
    found = HeadProfile(pretrained, pretrained, task, "finepruner profile", layers, heads, named_weights(weights))
    return Found(found, criterion, count, reliability(scores), held_out(seen, criterion), controlled)


def _look(model: Any, processor: Any, data: str, count: int, gradient: bool) -> Profiled:
    """What the heads attend to, with each question and with its instruction alone."""
    asked, unasked, evidence, hangs = [], [], [], []
    for image, question in tuning_questions(data, count):
        asked.append(last_rows(model, processor, image, question.prompt()))
        unasked.append(last_rows(model, processor, image, ONE_WORD.strip()))
        evidence.append(evidence_of(question, asked[-1].shape[-1]))
        if gradient:
            hangs.append(answer_gradient(model, processor, image, question.prompt(), question.expected))
    return Profiled(
        torch.stack(asked), torch.stack(unasked), torch.stack(evidence), torch.stack(hangs) if gradient else None
    )
