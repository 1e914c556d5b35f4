"""What one model answers to some scenes under every guide of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.heads.profile import HeadProfile
from finepruner_lmms.heads.profiles import find_profile
from finepruner_lmms.pruners import Pruner, VisionPruner, build_pruner
from head_study.deck import Deck
from head_study.decoder import best
from head_study.guides import Seen, guides
from head_study.parts import EVERYTHING, Agenda, Part, choice_name, guide_settings, method_name, settings
from head_study.study import ALL, Drop, Study
from head_study.worlds import VISUAL

_BLOCK = 48  # choices judged together
_METHODS = 8  # methods answered together


class Answers:
    """Collects rows of a part."""

    def __init__(self, deck: Deck) -> None:
        self.deck, self.size = deck, deck.subject.sum(1)
        self.names: list[str] = []
        self.settings: list[str] = []
        self.right: list[Tensor] = []
        self.evidence: list[Tensor] = []
        self.average: list[float] = []

    def add(self, name: str, right: Tensor, evidence: Tensor, average: float, settings: str = "") -> None:
        """One choice: `right` `[Q]`, and the kept evidence tokens of each question `[Q]`, in number."""
        self.names.append(name)
        self.settings.append(settings)
        self.right.append(right.cpu())
        share = evidence.to(self.size.device) / self.size.clamp_min(1)
        self.evidence.append(torch.where(self.size > 0, share, torch.nan).float().cpu())
        self.average.append(average)

    def part(self) -> Part:
        """All of them."""
        right, evidence = torch.stack(self.right).numpy(), torch.stack(self.evidence).numpy().astype(np.float16)
        average = np.array(self.average)
        scenes, kinds, depth = self.deck.scenes, self.deck.kinds, np.array(len(self.deck.layers))
        names, settings = np.array(self.names), np.array(self.settings)
        return Part(names, settings, right, evidence, average, scenes, kinds, depth)


@torch.no_grad()
def measure(
    model: Any, processor: Any, study: Study, split: str, scenes: range, profiles: Mapping[str, Path], agenda: Agenda
) -> Part:
    """What is asked of some scenes of a split; `profiles` are the files of the model's own."""
    weights = {name: find_profile("profile", str(file)) for name, file in profiles.items()}
    stops = {drop.p + 1 for drop in agenda.drops if drop.start == ALL}
    wish = first_stage(study).wish
    deck = Deck.part(model, processor, study.world, split, scenes, study.per_scene, stops, wish, study.kinds)
    answers = Answers(deck)
    if agenda.vanilla:
        answers.add(EVERYTHING, deck.vanilla, answers.size, VISUAL)
    how = guide_settings(study, profiles) if agenda.drops else ""
    for drop in agenda.drops:
        _judge(deck, drop, study, weights, answers, how)
    for start in range(0, len(agenda.methods), _METHODS):
        _ask(deck, agenda.methods[start : start + _METHODS], answers)
    return answers.part()


@torch.no_grad()
def rehearse(model: Any, processor: Any, study: Study, profiles: Mapping[str, Path]) -> None:
    """One question to every method: what this model cannot serve raises its error now, and not after hours."""
    deck = Deck.part(model, processor, study.world, "tuning", range(1), 1, kinds=study.kinds)
    for start in range(0, len(rows := study.pruners(profiles)), _METHODS):
        _ask(deck, rows[start : start + _METHODS], Answers(deck))


def first_stage(study: Study) -> VisionPruner:
    """The method before the model, without a budget."""
    found = build_pruner(study.first)
    assert isinstance(found, VisionPruner)
    return found


def _judge(
    deck: Deck, drop: Drop, study: Study, profiles: Mapping[str, HeadProfile], answers: Answers, how: str
) -> None:
    """All guides of one drop; `how` are their settings."""
    everything = torch.arange(VISUAL, device=deck.model.device).expand(len(deck.asked), -1)
    if drop.start == ALL:
        entering, prefill = everything, deck.full
    else:
        pruner = build_pruner(study.first, budget=drop.first)
        assert isinstance(pruner, VisionPruner)
        chosen = pruner.select_visual(deck.vision)[deck.place]
        entering = everything[chosen].unflatten(0, (len(chosen), -1))
        visual = deck.vision.projected[deck.place].gather(
            1, entering[..., None].expand(-1, -1, deck.vision.projected.shape[-1])
        )
        prefill = deck.prefill([one.ids for one in deck.asked], visual, {drop.p + 1})
    evidence, objects = (known.gather(1, entering).float() for known in (deck.subject, deck.objects))
    seen = Seen(prefill.attention, evidence, objects, f"{deck.scenes[0]} {drop}")
    found = list(guides(seen, drop, study, profiles))
    average = drop.average(len(deck.layers))
    for start in range(0, len(found), _BLOCK):
        block = found[start : start + _BLOCK]
        kept = torch.stack([best(scores, drop.retained) for _, scores in block])
        right = prefill.judge(kept, drop.p + 1)
        for (guide, _), one, tokens in zip(block, right, kept, strict=True):
            name = choice_name(drop.start, drop.p, drop.budget, guide)
            answers.add(name, one, evidence.gather(1, tokens).sum(1), average, how)


def _ask(deck: Deck, rows: Sequence[tuple[str, int, Pruner]], answers: Answers) -> None:
    """Registered methods, answered together by the package's own engine."""
    longest = max(len(one.answer) for one in deck.asked)
    width = max(len(one.ids) for one in deck.asked)
    padding = deck.processor.tokenizer.pad_token_id
    right = torch.zeros(len(rows), len(deck.asked), dtype=torch.bool)
    evidence = torch.zeros(len(rows), len(deck.asked))
    for some in torch.arange(len(deck.asked)).split(8):
        asked = [deck.asked[number] for number in some]
        ids = torch.tensor([[padding] * (width - len(one.ids)) + one.ids for one in asked])
        mask = torch.tensor([[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in asked])
        inputs = {"input_ids": ids.to(deck.model.device), "attention_mask": mask.to(deck.model.device)}
        # not what the deck has encoded: methods want to know different things of the tower
        inputs["pixel_values"] = deck.pixels[deck.place[some]].to(deck.model.device)
        pruners, said = [pruner for *_, pruner in rows], [one.question for one in asked]
        limits = {"max_new_tokens": longest, "do_sample": False}
        found = answer_together(deck.model, pruners, inputs, questions=said, **limits)
        for place, outcome in enumerate(found.outcomes):
            if isinstance(outcome, Exception):
                raise outcome
            last = outcome.trace.kept[max(outcome.trace.kept)] if outcome.trace.kept else None
            for number, one, says in zip(some.tolist(), asked, outcome.sequences.tolist(), strict=True):
                right[place, number] = says[: len(one.answer)] == one.answer
                tokens = slice(None) if last is None else last[number - int(some[0])]
                evidence[place, number] = deck.subject[number, tokens].sum()
    for row, one, kept in zip(rows, right, evidence, strict=True):
        schedule = row[-1].schedule(len(deck.layers), VISUAL)
        answers.add(method_name(row), one, kept, sum(schedule) / len(schedule), settings(row[-1]))
