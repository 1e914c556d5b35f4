"""Phase 2: projector and decoder learn to answer, by predicting the next word of answers and by contrast.

The contrast is that of phase 1, between projected visual tokens and the decoder's own words: it brings both into one
space, before the first answer and along with them. The tower stays as it is. No loss touches an attention map or knows
where a thing is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from demo_training.hard.beginnings import begin
from demo_training.hard.captions import (
    ATTRIBUTES,
    CHOICES,
    ORDINALS,
    WORDS,
    batch_of,
    chosen,
    near_miss,
    phrases,
    spoken,
)
from demo_training.hard.contrast import fits
from demo_training.hard.descent import adamw, descend
from demo_training.hard.forward import hidden_at
from demo_training.hard.muon import MuonAndAdamW
from demo_training.hard.packing import Packed, Packer
from demo_training.hard.resume import Progress
from demo_training.hard.seen import Seen
from demo_training.sizes import tower_of
from finepruner_lmms.demo.hard.choices import KINDS

_HELD_OUT, _HEAT = 16, 20.0
_FEWER = 32  # tuning pictures that are asked once more for each number of tokens
LAYERS = 12
"""Of a decoder before it grows."""
_STEPS = (8, 11)
"""Of these the one before which facts are known, and verdicts."""
_WEIGHTS = (0.5, 2.0, 1.0)  # of facts, verdicts and answers


@dataclass(frozen=True)
class AnswerPlan:
    """`steps` of `batch` pictures of `grid`×`grid` patches, each with `questions`; `aligned` weighs the contrast.

    `kept`: numbers of visual tokens to train with, one drawn for each step, the most telling ones; none: always all.
    """

    name: str
    grid: int
    steps: int
    batch: int
    questions: int
    rate: float
    pictures: int
    aligned: float = 0.2
    instructed: float = 0.3
    system: float = 0.0  # share of batches behind the system's sentence
    compact: float = 0.0  # share of batches whose visual tokens close ranks, as methods before the model leave them
    kept: tuple[int, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))


class Answerer:
    """A model whose projector and decoder are trained."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer) -> None:
        self.model, self.packer = model, Packer(tokenizer)
        self.tower, self.decoder = tower_of(model), model.model.language_model
        self.projector = model.model.multi_modal_projector
        self.trained = nn.ModuleList([self.decoder, self.projector, model.lm_head])
        known = [tokenizer.convert_tokens_to_ids(spoken(word)) for word in WORDS[1:]]
        self.words = torch.tensor([tokenizer.pad_token_id, *known])
        width = self.decoder.embed_tokens.weight.shape[1]
        fixed = torch.Generator().manual_seed(0)
        turns = [torch.linalg.qr(torch.randn(width, width, generator=fixed)).Q for _ in range(1 + len(ORDINALS))]
        self.turns = dict.fromkeys(CHOICES, turns[0]) | dict(zip(ORDINALS, turns[1:], strict=True))

    def align(self, plan: AnswerPlan, train: Seen, progress: Progress, rng: random.Random) -> None:
        """The contrast alone: projector and words, before any answer. It costs a twentieth of a step with answers."""
        aligned = [self.projector, self.decoder.embed_tokens]
        descend(
            aligned,
            adamw(aligned, plan.rate),
            plan,
            len(train.scenes),
            progress,
            rng,
            lambda some, rng: self._spelled(*self._see(plan, train, some, rng)[::2], rng),
            lambda: "",
        )

    def ready(self) -> None:
        """Before the first answer; see `demo_training.hard.beginnings`."""
        begin(self.decoder, self.projector, self.model.lm_head, self.turns, self.packer.tokenizer)

    def train(self, plan: AnswerPlan, train: Seen, tuning: Seen, progress: Progress, rng: random.Random) -> None:
        """All steps of a phase; goes on from where `progress` has it."""
        descend(
            [self.trained],
            MuonAndAdamW.of(self.decoder.layers, [self.trained], plan.rate),
            plan,
            len(train.scenes),
            progress,
            rng,
            lambda some, rng: self._loss(plan, train, some, rng),
            lambda: self.evaluate(tuning, plan, max(plan.kept, default=0)),
        )

    def _loss(self, plan: AnswerPlan, train: Seen, some: Tensor, rng: random.Random) -> Tensor:
        visual, places, scenes = self._see(plan, train, some, rng)
        spelled = self._spelled(visual, scenes, rng) if plan.aligned else 0.0
        compact = rng.random() < plan.compact
        packed = self.packer.pack(
            scenes,
            places,
            plan.weights,
            plan.questions,
            plan.instructed,
            rng,
            rng.random() < plan.system,
            compact,
        )
        total = plan.aligned * spelled
        for weight, targets, hidden in zip(_WEIGHTS, _asked_of(packed), self._forward(packed, visual), strict=True):
            asked = targets >= 0
            if asked.any():
                said = self.model.lm_head(hidden[asked.to(hidden.device)])
                total = total + weight * F.cross_entropy(said, targets[asked].to(said.device))
        return total

    def _see(self, plan: AnswerPlan, train: Seen, some: Tensor, rng: random.Random) -> tuple[Tensor, Tensor, list]:
        """Projected visual tokens, their places, and the scenes."""
        kept = rng.choice(plan.kept) if plan.kept else 0
        features, places = train.some(some, kept)
        visual = self.projector(features.to(self.model.device))
        return visual, places, [train.scenes[i] for i in some.tolist()]

    def _spelled(self, visual: Tensor, scenes: list, rng: random.Random) -> Tensor:
        wrong = [near_miss(one, rng.choice(ATTRIBUTES), rng) or phrases(scenes[i - 1]) for i, one in enumerate(scenes)]
        numbers = batch_of([phrases(scene) for scene in scenes] + wrong).words.to(visual.device)
        words = self._known()[numbers]
        words = (words * (numbers > 0)[..., None]).sum(2)
        present = numbers[..., 0] > 0
        scores = fits(F.normalize(visual, dim=-1), F.normalize(words, dim=-1) * present[..., None], present) * _HEAT
        count, truth = len(scenes), torch.arange(len(scenes), device=visual.device)
        return (
            F.cross_entropy(scores, truth) + F.cross_entropy(scores[:, :count].T, truth) + self._turned(visual, scenes)
        )

    def _known(self) -> Tensor:
        """The decoder's words for those of captions, without what all words share."""
        words = self.decoder.embed_tokens.weight
        return words[self.words.to(words.device)] - words.mean(0)

    def _turned(self, visual: Tensor, scenes: list) -> Tensor:
        """What captions say of a plate's neighbour and number, in the decoder's words, turned by fixed maps."""
        total, right, known = visual.new_zeros(()), [chosen(scene) for scene in scenes], self._known()
        for family, rows in CHOICES.items():
            targets = torch.tensor([one[family] for one in right], device=visual.device)
            numbers = batch_of(rows).words.to(visual.device)
            color, plate, other = known[numbers].unbind(2)
            told = F.normalize(color + plate + other @ self.turns[family].to(visual.device), dim=-1)
            best = torch.einsum("bnd,rsd->bnrs", F.normalize(visual, dim=-1), told).amax(1) * _HEAT
            if (targets >= 0).any():
                total = total + F.cross_entropy(best.flatten(0, 1), targets.flatten())
        return total

    def _forward(self, packed: Packed, visual: Tensor) -> list[Tensor]:
        """What the decoder has at every place, `[B, L, D]`: for facts, for verdicts, and in the end."""
        return hidden_at(self.decoder, packed, visual, _STEPS)

    def evaluate(self, tuning: Seen, plan: AnswerPlan, kept: int = 0) -> str:
        """The share of answers that are wholly right, by kind; as benchmarks ask them where `plan` trains that.

        With `kept`, from so many visual tokens only, the most telling. Where the plan draws from several numbers of
        them, also from each of these in closed ranks, the mean of the kinds.
        """
        shares, steps = self._right(tuning, plan, kept, len(tuning.scenes))
        told = " ".join(f"{name} {sum(right) / max(1, len(right)):.2f}" for name, right in steps.items())
        told = f"mean {_mean(shares):.3f} | {' '.join(f'{kind} {one:.2f}' for kind, one in shares.items())} | {told}"
        if len(counts := sorted(set(plan.kept))) > 1:
            each = {count: _mean(self._right(tuning, plan, count, _FEWER, compact=True)[0]) for count in counts}
            told += f" | in closed ranks {' '.join(f'{count} {mean:.2f}' for count, mean in each.items())}"
        return told

    @torch.no_grad()
    def _right(
        self, tuning: Seen, plan: AnswerPlan, kept: int, pictures: int, compact: bool = False
    ) -> tuple[dict[str, float], dict[str, list[bool]]]:
        """The shares of right answers by kind, about the first pictures, and which facts and verdicts are right."""
        rng, hits, steps = random.Random(5), defaultdict(list), defaultdict(list)
        pictures = min(pictures, len(tuning.scenes))
        for start in range(0, pictures, _HELD_OUT):
            some = torch.arange(start, min(start + _HELD_OUT, pictures))
            features, places = tuning.some(some, kept)
            packed = self.packer.pack(
                [tuning.scenes[i] for i in some.tolist()],
                places,
                plan.weights,
                12,
                float(plan.instructed > 0),
                rng,
                plan.system > 0,
                compact,
            )
            ends = self._forward(packed, self.projector(features.to(self.model.device)))
            said = [self.model.lm_head(hidden).argmax(-1).cpu() for hidden in ends]
            for name, targets, words in zip(("facts", "verdicts"), _asked_of(packed), said, strict=False):
                steps[name] += (words == targets)[targets >= 0].tolist()
            right = said[-1] == packed.targets
            for kind, row, first, last in packed.spans:
                hits[kind].append(bool(right[row, first : last + 1].all()))
        return {kind: sum(said) / len(said) for kind, said in sorted(hits.items())}, steps


def _mean(shares: Mapping[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def _asked_of(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    return packed.facts, packed.verdicts, packed.targets
