"""Phase 2: projector and decoder learn to answer, by predicting the next word of answers and by contrast.

The contrast is that of phase 1, between projected visual tokens and the decoder's own words: it brings both into one
space. The tower stays as it is. No loss touches an attention map or knows where a thing is.
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

from demo_training.hard.captions import ATTRIBUTES, WORDS, Captions, batch_of, near_miss, phrases
from demo_training.hard.contrast import fits, look
from demo_training.hard.descent import descend
from demo_training.hard.packing import Packed, Packer
from demo_training.hard.resume import Progress
from demo_training.hard.views import Views
from demo_training.sizes import tower_of
from finepruner_lmms.demo.hard.choices import KINDS

_HELD_OUT, _HEAT = 16, 20.0


@dataclass(frozen=True)
class AnswerPlan:
    """`steps` of `batch` pictures of `grid`×`grid` patches, each with `questions`; `aligned` weighs the contrast.

    `kept`: numbers of visual tokens to train with, drawn at random, as pruning leaves them; none: always all.
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
    kept: tuple[int, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))


class Answerer:
    """A model whose projector and decoder are trained."""

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer) -> None:
        self.model, self.packer = model, Packer(tokenizer)
        self.tower, self.decoder = tower_of(model), model.model.language_model
        self.trained = nn.ModuleList([self.decoder, model.model.multi_modal_projector, model.lm_head])
        known = [tokenizer.convert_tokens_to_ids(word) for word in WORDS[1:]]
        self.words = torch.tensor([tokenizer.pad_token_id, *known])

    def train(self, plan: AnswerPlan, train: Views, tuning: Views, progress: Progress) -> None:
        """All steps of a phase; goes on from where `progress` has it."""
        descend(
            [self.trained],
            plan,
            len(train.scenes),
            progress,
            random.Random(plan.name),
            lambda chosen, rng: self._loss(plan, train, chosen, rng),
            lambda: self.evaluate(tuning, plan),
        )

    def _loss(self, plan: AnswerPlan, train: Views, chosen: Tensor, rng: random.Random) -> Tensor:
        scenes = [train.scenes[i] for i in chosen.tolist()]
        visual = self._see(train, chosen)
        spelled = self._spelled(visual, scenes, rng) if plan.aligned else 0.0
        if plan.kept and (count := rng.choice((visual.shape[1], *plan.kept))) < visual.shape[1]:
            some = torch.rand(visual.shape[:2], device=visual.device).topk(count, 1).indices.sort(1).values
            visual = visual.gather(1, some[..., None].expand(-1, -1, visual.shape[-1]))
        packed = self.packer.pack(
            scenes, visual.shape[1], plan.weights, plan.questions, plan.instructed, rng, rng.random() < plan.system
        )
        targets = packed.targets.to(visual.device)
        asked = targets >= 0
        said = self.model.lm_head(self._forward(packed, visual)[asked])
        return F.cross_entropy(said, targets[asked]) + plan.aligned * spelled

    def _see(self, seen: Views, chosen: Tensor) -> Tensor:
        with torch.no_grad():
            features, _ = look(self.tower, seen, chosen)
        return self.model.model.multi_modal_projector(features)

    def _spelled(self, visual: Tensor, scenes: list, rng: random.Random) -> Tensor:
        wrong = [near_miss(one, rng.choice(ATTRIBUTES), rng) or phrases(scenes[i - 1]) for i, one in enumerate(scenes)]
        captions = batch_of([phrases(scene) for scene in scenes] + wrong)
        words = self.decoder.embed_tokens(self.words[captions.words].to(visual.device))
        words = (words * (captions.words > 0).to(visual.device)[..., None]).sum(2)
        present = Captions(captions.words.to(visual.device)).present
        scores = fits(F.normalize(visual, dim=-1), F.normalize(words, dim=-1) * present[..., None], present) * _HEAT
        count, truth = len(scenes), torch.arange(len(scenes), device=visual.device)
        return F.cross_entropy(scores, truth) + F.cross_entropy(scores[:, :count].T, truth)

    def _forward(self, packed: Packed, visual: Tensor) -> Tensor:
        """What the decoder ends with at every place, `[B, L, D]`."""
        device = visual.device
        embedded, end = self.decoder.embed_tokens(packed.ids.to(device)), packed.prefix + visual.shape[1]
        hidden = torch.cat([embedded[:, : packed.prefix], visual, embedded[:, end:]], 1)
        positions, mask = packed.positions.to(device), packed.mask.to(device)
        rotary = self.decoder.rotary_emb(hidden, positions)
        for layer in self.decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        return self.decoder.norm(hidden)

    @torch.no_grad()
    def evaluate(self, tuning: Views, plan: AnswerPlan) -> str:
        """The share of answers that are wholly right, by kind; as benchmarks ask them where `plan` trains that."""
        rng, hits = random.Random(5), defaultdict(list)
        for start in range(0, len(tuning.scenes), _HELD_OUT):
            chosen = torch.arange(start, min(start + _HELD_OUT, len(tuning.scenes)))
            visual, scenes = self._see(tuning, chosen), [tuning.scenes[i] for i in chosen.tolist()]
            packed = self.packer.pack(
                scenes, visual.shape[1], plan.weights, 12, plan.instructed > 0, rng, plan.system > 0
            )
            right = self.model.lm_head(self._forward(packed, visual)).argmax(-1).cpu() == packed.targets
            for kind, row, first, last in packed.spans:
                hits[kind].append(bool(right[row, first : last + 1].all()))
        shares = {kind: sum(said) / len(said) for kind, said in sorted(hits.items())}
        mean = sum(shares.values()) / len(shares)
        return f"mean {mean:.3f} | " + " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
