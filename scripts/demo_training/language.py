"""Phases 2 to 4: projector and decoder learn to answer, on frozen tower features; the decoder grows in between.

No loss ever touches an attention map, and no layer is kept from seeing the image: which heads look where is what
training makes of it.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from demo_training.packing import WORDS, Packed, Packer
from demo_training.sizes import DEEP, KEPT_EARLY, SHALLOW, TOWER, VISUAL, WIDTH, TowerSize, build
from demo_training.tower import COLOR_NAMES, NAMES, keep_some
from finepruner_lmms.demo.questions import KINDS

Log = Callable[[str], None]
EASY = {"any": 0.7, "exist": 1.0, "color": 1.0, "shape": 1.0, "digit": 0.8}
ALL = {"any": 0.2} | dict.fromkeys(KINDS, 1.0)


@dataclass(frozen=True)
class Plan:
    """One phase: how long, how fast, and how much help."""

    name: str
    steps: int
    rate: float
    floor: float  # share of the rate left at the end
    batch: int
    questions: int
    probe: float
    mixed: bool = False  # all visual tokens and subsets of them, as at inference
    instructed: float = 0.0  # share of questions with the benchmark's instruction; 0: none at first, half later
    easy: float = 0.0  # share of left-out questions about the only digit of a scene
    emphasis: Mapping[str, float] = field(default_factory=dict)  # kinds asked more often than the others


class Probes(nn.Module):
    """Linear readers of hidden states inside the decoder; training aids, not part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_later = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.count, self.other = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, len(WORDS))
        self.meaning, self.option = nn.Linear(WIDTH, len(WORDS)), nn.Linear(WIDTH, 2)


def grow(model: LlavaForConditionalGeneration, seed: int, tower: TowerSize = TOWER) -> LlavaForConditionalGeneration:
    """The same function with 32 layers: behind each layer from the third on come some that add nothing yet."""
    config, shallow = model.config, model.model.language_model
    ids = {"<s>": config.text_config.bos_token_id, "</s>": config.text_config.eos_token_id}
    ids |= {"<pad>": config.text_config.pad_token_id, "<image>": config.image_token_id}
    rope = config.text_config.rope_parameters["rope_theta"]
    deep = build(config.text_config.vocab_size, ids, DEEP, seed + 1, tower, rope)
    state = {k: v for k, v in model.state_dict().items() if "language_model.layers." not in k}
    deep.load_state_dict(state, strict=False)
    with torch.no_grad():
        for layer in deep.model.language_model.layers[KEPT_EARLY:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for index, layer in enumerate(shallow.layers):
            target = layer_of(index, DEEP, len(shallow.layers))
            deep.model.language_model.layers[target].load_state_dict(layer.state_dict())
    return deep


def layer_of(original: int, depth: int, shallow: int = SHALLOW) -> int:
    """The layer that was `original` before a decoder of `shallow` layers grew."""
    if original < KEPT_EARLY:
        return original
    return KEPT_EARLY + (original - KEPT_EARLY) * ((depth - KEPT_EARLY) // (shallow - KEPT_EARLY))


class Trainer:
    """One model, its frozen features, and what a step does."""

    def __init__(self, model, tokenizer, data: dict, tuning: dict, seed: int, log: Log) -> None:
        self.model, self.data, self.tuning, self.log = model, data, tuning, log
        self.packer, self.rng = Packer(tokenizer), random.Random(seed)
        torch.manual_seed(seed)
        self.probes = Probes()
        self.decoder, self.projector = model.model.language_model, model.model.multi_modal_projector
        self.name_ids = torch.tensor([tokenizer.convert_tokens_to_ids(name) for name in NAMES])
        self.color_ids = torch.tensor([tokenizer.convert_tokens_to_ids(name) for name in COLOR_NAMES])

    def run(self, plan: Plan, partial: Path | None = None) -> None:
        """All steps of a phase. With `partial`, a file written now and then, a stopped phase goes on from it."""
        trained = [self.decoder, self.projector, self.model.lm_head, self.probes]
        parameters = [p for module in trained for p in module.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
        started, hits, losses = time.monotonic(), defaultdict(list), []
        first = 0 if partial is None or not partial.exists() else self._resume(partial, parameters, optimizer)
        for step in range(first, plan.steps):
            if partial is not None and step % 50 == 0 and step > first:
                self._keep(partial, step, parameters, optimizer)
            done = step / plan.steps
            rate = (
                plan.rate
                * min(1, (step + 1) / 40)
                * (plan.floor + (1 - plan.floor) * (1 + math.cos(math.pi * done)) / 2)
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = self.step(plan, done, hits)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.item())
            if step % 25 == 24 or step == plan.steps - 1:
                shown = " ".join(f"{kind} {sum(h) / len(h):.2f}" for kind, h in sorted(hits.items()))
                spent = time.monotonic() - started
                self.log(
                    f"{plan.name} {step + 1}/{plan.steps} {spent:.0f} s loss {sum(losses) / len(losses):.3f} | {shown}"
                )
                hits.clear()
                losses.clear()
            if step % 200 == 199 or step == plan.steps - 1:
                self.log(f"  tuning: {self.evaluate()}")

    def _keep(self, file: Path, step: int, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Save everything that the coming steps depend on."""
        weights = [p.detach() for p in parameters]
        state = {"step": step, "weights": weights, "optimizer": optimizer.state_dict(), "torch": torch.get_rng_state()}
        beside = file.with_suffix(".new")
        torch.save(state | {"python": self.rng.getstate()}, beside)
        beside.replace(file)

    def _resume(self, file: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Load what `_keep` saved; returns the step to go on with."""
        state = torch.load(file, weights_only=True)
        with torch.no_grad():
            for parameter, weight in zip(parameters, state["weights"], strict=True):
                parameter.copy_(weight)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"])
        version, internal, gauss = state["python"]
        self.rng.setstate((version, tuple(internal), gauss))
        self.log(f"{file.stem}: goes on at step {state['step']}")
        return int(state["step"])

    def step(self, plan: Plan, done: float, hits: dict[str, list[bool]]) -> Tensor:
        """The loss of one batch; `hits` collects what was answered rightly, by kind."""
        rng, scenes = self.rng, self.data["scenes"]
        count = rng.choices((VISUAL, 192, 128, 64, 32), (6, 3, 3, 3, 3))[0] if plan.mixed else 0
        chosen = torch.randint(0, len(scenes), (plan.batch // 2 if count == VISUAL else plan.batch,))
        dense = self.data["dense"][chosen]
        objects = dense[:, 0] > 0
        drop_inside, compact = 0, False
        if plan.mixed:
            kept = _subset(objects, count, rng.random() < 0.6)
            compact = count < VISUAL and rng.random() < 0.75
            if count == VISUAL and rng.random() < 0.5:  # as decoder-side methods do
                drop_inside = rng.choice((166, 98, 40))
        else:
            kept = keep_some(objects, rng.choice((40, 48, 64, 96)))
        weights = dict(EASY) if plan.name == "lookups" and done < 0.35 else ALL | dict(plan.emphasis)
        if plan.name == "lookups":
            weights |= {k: w * 1.5 for k, w in EASY.items() if done < 0.7}
        instruct = plan.instructed or (0.0 if done < 0.5 else 0.5)
        system = rng.random() < (0.75 if plan.mixed else 0.1)
        packed = self.packer.pack(
            [scenes[i] for i in chosen.tolist()],
            kept,
            weights,
            rng,
            plan.questions,
            instruct,
            system,
            compact,
            easy=plan.easy,
        )
        return self._loss(packed, self.data["features"][chosen], dense, kept, plan, done, drop_inside, hits)

    def _loss(self, packed: Packed, features, dense, kept, plan, done, drop_inside, hits) -> Tensor:
        visual = self.projector(features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1])).float())
        hidden, mid, late = self.forward(packed, visual, drop_inside, dense[:, 0] > 0)
        rows, columns, said = torch.tensor(packed.answers + packed.ends).T
        logits = self.model.lm_head(hidden[rows, columns])
        weight = torch.ones(len(said))
        weight[len(packed.answers) :] = 0.1  # the end token is easy
        loss = (F.cross_entropy(logits, said, reduction="none") * weight).sum() / weight.sum()
        for kind, hit in zip(packed.kinds, (logits.argmax(-1) == said).tolist(), strict=False):
            hits[kind].append(hit)

        truth = dense.gather(2, kept[:, None].expand(-1, 4, -1))
        shown = truth[:, 2] >= 0
        words = self.model.get_input_embeddings().weight
        objects = visual[shown]
        spelled = F.cross_entropy(objects @ words[self.name_ids].T * 0.2, truth[:, 0][shown] - 1)
        spelled = spelled + F.cross_entropy(objects @ words[self.color_ids].T * 0.2, truth[:, 1][shown] - 1)
        share = 0.5 if plan.name == "lookups" and done < 0.4 else 0.15
        return loss + share * spelled + plan.probe * self._probe_loss(packed, mid, late)

    def _probe_loss(self, packed: Packed, mid: Tensor, late: Tensor) -> Tensor:
        probes, total = self.probes, torch.zeros(())
        if packed.mentions:
            rows, columns, counts, others = torch.tensor(packed.mentions).T
            read = probes.norm(mid[rows, columns])
            total = total + 0.5 * F.cross_entropy(probes.count(read), counts)
            if (clear := others >= 0).any():
                total = total + 0.5 * F.cross_entropy(probes.other(read[clear]), others[clear])
        rows, columns, words = torch.tensor(packed.meanings).T
        total = total + F.cross_entropy(probes.meaning(probes.norm_later(late[rows, columns])), words)
        if packed.options:
            rows, columns, right = torch.tensor(packed.options).T
            read = probes.option(probes.norm_later(late[rows, columns]))
            total = total + F.cross_entropy(read, right, weight=torch.tensor([1.0, 2.0]))
        return total

    def forward(self, packed: Packed, visual: Tensor, drop_inside: int = 0, objects: Tensor | None = None):
        """Final hidden states, and those before what was layer 5 and layer 6 of the shallow decoder.

        `drop_inside` masks all but that many visual tokens from layer 2 on (objects first, or at random).
        """
        decoder, count = self.decoder, visual.shape[1]
        embedded = decoder.embed_tokens(packed.ids)
        prefix = packed.prefix
        hidden = torch.cat([embedded[:, :prefix], visual, embedded[:, prefix + count :]], 1)
        rotary = decoder.rotary_emb(hidden, packed.positions)
        mask, depth = packed.mask, len(decoder.layers)
        if drop_inside and objects is not None:
            gone = torch.ones(objects.shape, dtype=torch.bool)
            gone.scatter_(1, _subset(objects, drop_inside, self.rng.random() < 0.6), False)
            blind = torch.zeros(packed.ids.shape, dtype=torch.bool)
            blind[:, prefix : prefix + count] = gone
            own = torch.eye(packed.ids.shape[1], dtype=torch.bool)
            later = mask & (~blind[:, None, None] | own)
        else:
            later = mask
        mid = late = hidden
        for index, layer in enumerate(decoder.layers):
            mid = hidden if index == layer_of(5, depth) else mid
            late = hidden if index == layer_of(6, depth) else late
            hidden = layer(
                hidden,
                attention_mask=mask if index < KEPT_EARLY else later,
                position_ids=packed.positions,
                position_embeddings=rotary,
            )
        return decoder.norm(hidden), mid, late

    @torch.no_grad()
    def evaluate(self, count: int = VISUAL) -> str:
        """Accuracy by kind on tuning scenes, at all visual tokens or at `count` random ones."""
        rng, hits = random.Random(5), defaultdict(list)
        scenes, features = self.tuning["scenes"], self.tuning["features"]
        generator = torch.Generator().manual_seed(0)
        for i in range(0, len(scenes), 16):
            some = scenes[i : i + 16]
            score = torch.rand(len(some), VISUAL, generator=generator)
            kept = score.topk(count, 1).indices.sort(1).values
            whole = torch.arange(VISUAL).expand(len(some), -1)
            packed = self.packer.pack(some, whole, dict.fromkeys(KINDS, 1.0), rng, 16, 1.0, True, False)
            if count < VISUAL:
                packed = self.packer.pack(some, kept, dict.fromkeys(KINDS, 1.0), rng, 16, 1.0, True, True)
            visual = features[i : i + 16].gather(1, kept[..., None].expand(-1, -1, features.shape[-1])).float()
            hidden, _, _ = self.forward(packed, self.projector(visual))
            rows, columns, said = torch.tensor(packed.answers).T
            right = self.model.lm_head(hidden[rows, columns]).argmax(-1) == said
            for kind, hit in zip(packed.kinds, right.tolist(), strict=True):
                hits[kind].append(hit)
        shares = {kind: sum(h) / len(h) for kind, h in sorted(hits.items())}
        mean = sum(shares.values()) / len(shares)
        return f"mean {mean:.3f} | " + " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())


def _subset(objects: Tensor, count: int, objects_first: bool) -> Tensor:
    """`count` visual tokens of each row, ascending: objects and random others, or purely random."""
    score = torch.rand(objects.shape) + (2 * objects.float() if objects_first else 0)
    return score.topk(count, 1).indices.sort(1).values
