"""Phase 1: the tower learns by contrast which caption belongs to which picture.

Twice: by its CLS token, as CLIP does, and by late interaction, as FILIP does: a phrase is as true as its best patch
says. Among the wrong captions of a picture is one in which a single attribute was changed. And of every phrase that
there is, its best patch says whether it is true of the picture: that is what teaches to tell near misses among many
things. No loss knows where a thing is; the report says how often a phrase's best patch shows what it names, and that is
measured, not trained.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_training.hard.captions import (
    ATTRIBUTES,
    CHOICES,
    EVERY,
    WORDS,
    Captions,
    Phrase,
    batch_of,
    chosen,
    near_miss,
    phrases,
)
from demo_training.hard.descent import descend
from demo_training.hard.muon import MuonAndAdamW
from demo_training.hard.resume import Progress
from demo_training.hard.views import Views
from demo_training.tower import normalise, run_tower

_WIDTH = 96  # of the space in which pictures and phrases are compared
_TRUTHS = 20.0  # weight of a mean over all phrases, of which most are easily seen to be wrong
_HELD_OUT = 64  # pictures of a report's batch


@dataclass(frozen=True)
class ContrastPlan:
    """Pictures of `grid`×`grid` patches: `steps` of `batch` of them, at a `rate` that falls to a twentieth."""

    grid: int
    steps: int
    batch: int
    rate: float
    pictures: int


class Captioned(nn.Module):
    """The text side of the contrast and both projections; training aids, not part of the model."""

    def __init__(self, tower_width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), _WIDTH, padding_idx=0)
        self.phrase = nn.Sequential(nn.Linear(_WIDTH, 2 * _WIDTH), nn.GELU(), nn.Linear(2 * _WIDTH, _WIDTH))
        self.patch, self.whole = nn.Linear(tower_width, _WIDTH), nn.Linear(tower_width, _WIDTH)
        self.caption = nn.Linear(_WIDTH, _WIDTH)
        self.heat = nn.Parameter(
            torch.tensor([math.log(20.0), math.log(10.0), math.log(10.0), math.log(10.0)])
        )  # of patches, CLS, truths, choices
        self.bar = nn.Parameter(torch.tensor(0.5))  # how well a patch has to fit a phrase that is true

    def phrases(self, captions: Captions) -> Tensor:
        """`[B, P, W]`, of length 1; zeros where there is none."""
        told = self.phrase(self.words(captions.words).sum(2))
        return F.normalize(told, dim=-1) * captions.present[..., None]

    def telling(self, patches: Tensor) -> Tensor:
        """`[B, N]`: how much better each of the patches `[B, N, C]` fits a phrase than the picture's patches do.

        The best phrase counts, of all there are. A phrase that is true of most pictures, such as a digit, may be fitted
        by every patch of the background; whatever all patches fit tells nothing of one.
        """
        fit = self._fit(patches, EVERY)
        return (fit - fit.mean(1, keepdim=True)).amax(-1)

    def truths(self, patches: Tensor) -> Tensor:
        """`[B, P]`: of every phrase, by its best patch among `[B, N, C]`, whether it is true of a picture; logits."""
        return (self._fit(patches, EVERY).amax(1) - self.bar) * self.heat[2].exp().clamp(max=100)

    def choose(self, patches: Tensor) -> dict[str, Tensor]:
        """For each family of `CHOICES` `[B, rows, sentences]`: how well each sentence fits its best patch; logits."""
        flat = [phrase for rows in CHOICES.values() for row in rows for phrase in row]
        best, found, start = self._fit(patches, flat).amax(1) * self.heat[3].exp().clamp(max=100), {}, 0
        for family, rows in CHOICES.items():
            count = len(rows) * len(rows[0])
            found[family] = best[:, start : start + count].unflatten(1, (len(rows), -1))
            start += count
        return found

    def _fit(self, patches: Tensor, told: Sequence[Phrase]) -> Tensor:
        """`[B, N, P]`: the cosine of each patch with each of P phrases."""
        said = Captions(batch_of([told]).words.to(patches.device))
        return F.normalize(self.patch(patches), dim=-1) @ self.phrases(said)[0].T

    def compare(self, patches: Tensor, whole: Tensor, captions: Captions) -> tuple[Tensor, Tensor]:
        """How well B pictures fit M captions, `[B, M]` each: by patches `[B, N, C]`, and by the CLS token `[B, C]`."""
        told = self.phrases(captions)
        number = captions.present.sum(1).clamp(min=1)
        seen = F.normalize(self.patch(patches), dim=-1)
        fine = fits(seen, told, captions.present)
        summary = F.normalize(self.caption(told.sum(1) / number[:, None].sqrt()), dim=-1)
        coarse = F.normalize(self.whole(whole), dim=-1) @ summary.T
        heat = self.heat.exp().clamp(max=100)
        return fine * heat[0], coarse * heat[1]


def fits(seen: Tensor, told: Tensor, present: Tensor) -> Tensor:
    """`[B, M]`: how well patches `[B, N, W]` fit captions `[M, P, W]`: the mean over phrases of the best patch."""
    best = torch.einsum("bnw,mpw->bmpn", seen, told).amax(-1)
    return (best * present).sum(-1) / present.sum(1).clamp(min=1)


def train_contrast(
    tower: nn.Module,
    captioned: Captioned,
    plan: ContrastPlan,
    train: Views,
    tuning: Views,
    progress: Progress,
    rng: random.Random,
) -> None:
    """Train both in place, with the chance of `rng`; goes on from where `progress` has it."""
    descend(
        [tower, captioned],
        MuonAndAdamW.of(tower.encoder, [tower, captioned], plan.rate),
        plan,
        len(train.scenes),
        progress,
        rng,
        lambda some, rng: _loss(tower, captioned, plan, train, some, rng),
        lambda: report(tower, captioned, tuning),
    )


def _loss(
    tower: nn.Module, captioned: Captioned, plan: ContrastPlan, train: Views, some: Tensor, rng: random.Random
) -> Tensor:
    scenes = [train.scenes[i] for i in some.tolist()]
    wrong = [near_miss(scene, rng.choice(ATTRIBUTES), rng) or phrases(scenes[i - 1]) for i, scene in enumerate(scenes)]
    captions = batch_of([phrases(scene) for scene in scenes] + wrong)
    patches, whole = look(tower, train, some, shift=True)
    count, total = len(scenes), torch.zeros((), device=whole.device)
    truth = torch.arange(count, device=whole.device)
    moved = Captions(captions.words.to(whole.device))
    for scores in captioned.compare(patches, whole, moved):
        total = total + F.cross_entropy(scores, truth) + F.cross_entropy(scores[:, :count].T, truth)
    true = torch.tensor([[phrase in told for phrase in EVERY] for told in map(set, map(phrases, scenes))])
    total = total + _TRUTHS * F.binary_cross_entropy_with_logits(captioned.truths(patches), true.to(patches))
    right = [chosen(scene) for scene in scenes]
    for family, logits in captioned.choose(patches).items():
        targets = torch.tensor([one[family] for one in right], device=whole.device)
        if (targets >= 0).any():
            total = total + F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return total


def look(tower: nn.Module, seen: Views, chosen: Tensor, shift: bool = False) -> tuple[Tensor, Tensor]:
    """Patches `[B, N, C]` as LLaVA reads them (one layer before the last), and the CLS token after the last."""
    device = next(tower.parameters()).device
    pixels, places = seen.pixels[chosen].to(device), seen.places(len(chosen), shift).to(device)
    features, last = run_tower(tower, normalise(pixels, jitter=shift), places)
    return features[:, 1:], tower.post_layernorm(last[:, 0])


@torch.no_grad()
def report(tower: nn.Module, captioned: Captioned, tuning: Views) -> str:
    """Of captions with one attribute changed, how often the true one fits better (chance 0.50); and best patches.

    By patches / by CLS for each attribute; of each family of `CHOICES` the share rightly chosen; "found": the share of
    phrases whose best patch shows the thing (plates for digits). Every picture of `tuning` has a caption of each
    attribute that it allows.
    """
    rng = random.Random(0)
    hits: dict[str, list[tuple[bool, bool]]] = {attribute: [] for attribute in ATTRIBUTES}
    found: list[bool] = []
    told_right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(tuning.scenes), _HELD_OUT):
        numbers = torch.arange(start, min(start + _HELD_OUT, len(tuning.scenes)))
        patches, whole = look(tower, tuning, numbers)
        told_best = {family: logits.argmax(-1).tolist() for family, logits in captioned.choose(patches).items()}
        for row, scene in enumerate(tuning.scenes[i] for i in numbers.tolist()):
            for family, right in chosen(scene).items():
                told_right[family] += [a == b for a, b in zip(told_best[family][row], right, strict=True) if b >= 0]
            one, cls, true = patches[row : row + 1], whole[row : row + 1], phrases(scene)
            for attribute in ATTRIBUTES:
                if wrong := near_miss(scene, attribute, rng):
                    both = Captions(batch_of([true, wrong]).words.to(one.device))
                    fine, coarse = captioned.compare(one, cls, both)
                    hits[attribute].append((bool(fine[0, 0] > fine[0, 1]), bool(coarse[0, 0] > coarse[0, 1])))
            told = captioned.phrases(Captions(batch_of([true]).words.to(one.device)))[0]
            best = (F.normalize(captioned.patch(one[0]), dim=-1) @ told.T).argmax(0).tolist()
            for phrase, patch in zip(true, best, strict=True):
                y, x = divmod(patch, tuning.grid)
                here = [t for t in scene.things if t.x <= x < t.x + t.width and t.y <= y < t.y + t.height]
                found.append(any(_is(thing, phrase) for thing in here))
    shares = [_share(attribute, said) for attribute, said in hits.items() if said]
    shares += [f"{family} {sum(said) / len(said):.2f}" for family, said in told_right.items() if said]
    return " ".join([*shares, f"found {sum(found) / len(found):.2f}"])


def _share(attribute: str, said: list[tuple[bool, bool]]) -> str:
    fine, coarse = (sum(column) / len(said) for column in zip(*said, strict=True))
    return f"{attribute} {fine:.2f}/{coarse:.2f}"


def _is(thing, phrase: tuple[str, ...]) -> bool:
    if len(phrase) == 1:
        return thing.is_plate and phrase[0] in thing.name
    return (thing.color, "plate") == phrase if thing.is_plate else (thing.size, thing.color, thing.name) == phrase
