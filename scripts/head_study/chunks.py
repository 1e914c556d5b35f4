"""What one model answers to some scenes under every guide of a study, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from head_study.study import ALL, Drop, Study

VANILLA = "vanilla"
METHOD = "method"
_BLOCK = 48  # choices judged together
_METHODS = 8  # methods answered together


@dataclass(frozen=True)
class Part:
    """The answers to some scenes: by choice (`name`), `right` `[C, Q]`, and the share of the evidence tokens that was
    kept `[C, Q]`, NaN where a question hangs on none. `average` `[C]`: visual tokens per layer, of `depth` layers."""

    names: np.ndarray
    right: np.ndarray
    evidence: np.ndarray
    average: np.ndarray
    scenes: np.ndarray
    kinds: np.ndarray
    depth: np.ndarray

    def save(self, file: Path, identity: str) -> None:
        """Whole or not at all."""
        partial = file.with_suffix(".partial.npz")
        np.savez_compressed(partial, identity=np.array(identity), **vars(self))
        partial.replace(file)


def read_part(file: Path, identity: str) -> Part:
    """A file of `save`. `ValueError` if it is not there, or of a study that measured something else."""
    if not file.exists():
        raise ValueError(f"{file}: is not there; head_study.equal makes it")
    found = dict(np.load(file))
    if str(found.pop("identity")) != identity:
        raise ValueError(f"{file}: is of another study; give this one another folder")
    return Part(**found)


def choice_name(start: str, p: int, budget: int, guide: str) -> str:
    """What a choice is called in results: parts are found again by `split("/")`."""
    return f"{start}/{p}/{budget}/{guide}"


class Answers:
    """Collects rows of a part."""

    def __init__(self, deck: Deck) -> None:
        self.deck, self.size = deck, deck.subject.sum(1)
        self.names: list[str] = []
        self.right: list[Tensor] = []
        self.evidence: list[Tensor] = []
        self.average: list[float] = []

    def add(self, name: str, right: Tensor, evidence: Tensor, average: float) -> None:
        """One choice: `right` `[Q]`, and the kept evidence tokens of each question `[Q]`, in number."""
        self.names.append(name)
        self.right.append(right.cpu())
        share = evidence.to(self.size.device) / self.size.clamp_min(1)
        self.evidence.append(torch.where(self.size > 0, share, torch.nan).float().cpu())
        self.average.append(average)

    def part(self) -> Part:
        """All of them."""
        right, evidence = torch.stack(self.right).numpy(), torch.stack(self.evidence).numpy().astype(np.float16)
        average = np.array(self.average)
        scenes, kinds, depth = self.deck.scenes, self.deck.kinds, np.array(len(self.deck.layers))
        return Part(np.array(self.names), right, evidence, average, scenes, kinds, depth)


@torch.no_grad()
def measure(model: Any, processor: Any, study: Study, split: str, scenes: range, profiles: Mapping[str, Path]) -> Part:
    """Every choice of a study on some scenes of a split; `profiles` are the files of the model's own."""
    weights = {name: find_profile("profile", str(file)) for name, file in profiles.items()}
    layers = len(model.model.language_model.layers)
    drops = study.drops(layers)
    stops = {drop.p + 1 for drop in drops if drop.start == ALL}
    wish = first_stage(study).wish
    deck = Deck.part(model, processor, study.world, split, scenes, study.per_scene, stops, wish, study.kinds)
    answers = Answers(deck)
    answers.add(choice_name(VANILLA, 0, 0, VANILLA), deck.vanilla, answers.size, deck.full.visual)
    for drop in drops:
        _judge(deck, drop, study, weights, answers)
    for start in range(0, len(rows := study.pruners(profiles)), _METHODS):
        _ask(deck, rows[start : start + _METHODS], answers)
    return answers.part()


@torch.no_grad()
def rehearse(model: Any, processor: Any, study: Study, profiles: Mapping[str, Path]) -> None:
    """One question to every method: what this model cannot serve raises its error now, and not after hours."""
    kinds, layers = study.kinds, len(model.model.language_model.layers)
    deck = Deck.part(model, processor, study.world, "tuning", range(1), 1, {layers}, first_stage(study).wish, kinds)
    for start in range(0, len(rows := study.pruners(profiles)), _METHODS):
        _ask(deck, rows[start : start + _METHODS], Answers(deck))


def first_stage(study: Study) -> VisionPruner:
    """The method before the model, without a budget."""
    found = build_pruner(study.first)
    assert isinstance(found, VisionPruner)
    return found


def _judge(deck: Deck, drop: Drop, study: Study, profiles: Mapping[str, HeadProfile], answers: Answers) -> None:
    """All guides of one drop."""
    everything = torch.arange(deck.full.visual, device=deck.model.device).expand(len(deck.asked), -1)
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
            answers.add(name, one, evidence.gather(1, tokens).sum(1), average)


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
    for (label, budget, pruner), one, kept in zip(rows, right, evidence, strict=True):
        schedule = pruner.schedule(len(deck.layers), deck.full.visual)
        answers.add(choice_name(METHOD, 0, budget, label), one, kept, sum(schedule) / len(schedule))
