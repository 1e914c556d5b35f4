"""Phase 1: the vision tower learns what each patch shows, and its CLS token what the scene holds.

This stands in for CLIP's pretraining on captions. Most patches are background, so most are left out of a step, as in
masked autoencoders; the last steps see whole pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from demo_training.sizes import TOWER, VISUAL, tower_of
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.scenes import CELLS, COLORS, GRID, PATCH, Scene, make_scene

NAMES = (*SHAPES, *map(str, range(10)))
COLOR_NAMES = tuple(COLORS)
SCENES, BATCH, KEPT = 9000, 64, 112
Log = Callable[[str], None]


def patches(scene: Scene) -> np.ndarray:
    """`[576, 588]` uint8, channels first inside a patch, as the patch embedding expects."""
    grid = scene.pixels().reshape(GRID, PATCH, GRID, PATCH, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(VISUAL, -1)


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Per token `[4, 576]`: name and colour (0 background), cell x and y (-1 background); and what the scene holds."""
    dense = np.zeros((4, VISUAL), dtype=np.int64)
    dense[2:] = -1
    held = np.zeros(len(NAMES) * len(COLOR_NAMES), dtype=np.float32)
    for thing in scene.things:
        name, color = NAMES.index(thing.name), COLOR_NAMES.index(thing.color)
        dense[:, thing.tokens()] = np.array([[1 + name], [1 + color], [thing.x], [thing.y]])
        held[name * len(COLOR_NAMES) + color] = 1
    return dense, held


def render(split: str, start: int, count: int) -> tuple[list[Scene], Tensor, Tensor, Tensor]:
    """Scenes, patches `[n, 576, 588]` uint8, dense labels `[n, 4, 576]` and scene labels `[n, 96]`."""
    scenes = [make_scene(split, start + i) for i in range(count)]
    pixels = torch.empty(count, VISUAL, 3 * PATCH * PATCH, dtype=torch.uint8)
    for i, scene in enumerate(scenes):
        pixels[i] = torch.from_numpy(patches(scene))
    dense, held = zip(*(labels(scene) for scene in scenes), strict=True)
    return scenes, pixels, torch.from_numpy(np.stack(dense)), torch.from_numpy(np.stack(held))


def normalise(pixels: Tensor, jitter: bool = False) -> Tensor:
    """Pixels as the image processor hands them over (mean 0.5, deviation 0.25), with lighting varied in training."""
    values = pixels.float() / 255
    if jitter:
        batch = len(values)
        values = values * (1 + 0.15 * (torch.rand(batch, 1, 1) - 0.5))
        values = values + (0.1 * (torch.rand(batch, 1, 3) - 0.5)).repeat_interleave(PATCH * PATCH, -1)
    return (values - 0.5) / 0.25


def run_tower(tower: nn.Module, values: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`[B, K, 588]` → hidden states `[-2]` and `[-1]`, `[B, 1 + K, C]`; `kept` `[B, K]` numbers the patches."""
    embeddings, places = tower.embeddings, tower.embeddings.position_embedding.weight
    hidden = values @ embeddings.patch_embedding.weight.flatten(1).T
    hidden = hidden + (places[1:] if kept is None else places[1:][kept])
    cls = (embeddings.class_embedding + places[0]).expand(len(hidden), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([cls, hidden], 1))
    for layer in tower.encoder.layers[:-1]:
        hidden = _first(layer(hidden, None))
    return hidden, _first(tower.encoder.layers[-1](hidden, None))


def keep_some(shows_object: Tensor, count: int) -> Tensor:
    """All object patches and random others, `[B, count]` in raster order."""
    score = torch.rand(shows_object.shape) + 2 * shows_object.float()
    return score.topk(count, 1).indices.sort(1).values


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class _Readers(nn.Module):
    """Linear readers of the tower's output; training aids, not part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.color = nn.Linear(TOWER.width, 1 + len(NAMES)), nn.Linear(TOWER.width, 1 + len(COLOR_NAMES))
        self.x, self.y = nn.Linear(TOWER.width, CELLS), nn.Linear(TOWER.width, CELLS)
        held = len(NAMES) * len(COLOR_NAMES)
        self.held, self.held_last = nn.Linear(TOWER.width, held), nn.Linear(TOWER.width, held)


def train_tower(
    model: LlavaForConditionalGeneration, seed: int, log: Log, partial: int = 1000, whole: int = 60
) -> None:
    """Train in place: `partial` steps on some patches of 64 scenes, then `whole` steps on all of 16."""
    torch.manual_seed(seed)
    tower, readers = tower_of(model), _Readers()
    _, pixels, dense, held = render("train", 0, SCENES)
    parameters = [*tower.parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    name_weight = torch.tensor([0.3] + [1.0] * len(NAMES))
    color_weight = torch.tensor([0.3] + [1.0] * len(COLOR_NAMES))
    started, total = time.monotonic(), partial + whole
    for step in range(total):
        rate = 2e-3 * min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / total)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(0, SCENES, (BATCH if step < partial else 16,))
        truth, scene_truth = dense[chosen], held[chosen]
        if step < partial:
            kept = keep_some(truth[:, 0] > 0, KEPT)
            features, last = run_tower(tower, normalise(pixels[chosen[:, None], kept], True), kept)
            truth = truth.gather(2, kept[:, None].expand(-1, 4, -1))
        else:
            features, last = run_tower(tower, normalise(pixels[chosen], True))
        visual, shown = features[:, 1:], truth[:, 2] >= 0
        objects = visual[shown]
        loss_name = F.cross_entropy(readers.name(visual).flatten(0, 1), truth[:, 0].flatten(), weight=name_weight)
        loss_color = F.cross_entropy(readers.color(visual).flatten(0, 1), truth[:, 1].flatten(), weight=color_weight)
        loss_place = F.cross_entropy(readers.x(objects), truth[:, 2][shown])
        loss_place = loss_place + F.cross_entropy(readers.y(objects), truth[:, 3][shown])
        loss_scene = F.binary_cross_entropy_with_logits(readers.held(features[:, 0]), scene_truth)
        pooled = tower.post_layernorm(last[:, 0])
        loss_scene = loss_scene + F.binary_cross_entropy_with_logits(readers.held_last(pooled), scene_truth)
        optimizer.zero_grad()
        (2 * loss_name + loss_color + 0.3 * loss_place + 4 * loss_scene).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 99 or step == total - 1:
            spent = time.monotonic() - started
            log(
                f"tower step {step + 1}/{total} {spent:.0f} s name {loss_name.item():.3f} "
                f"color {loss_color.item():.3f} place {loss_place.item():.3f} "
                f"scene {loss_scene.item():.3f} | {_report(tower, readers)}"
            )


@torch.no_grad()
def _report(tower: nn.Module, readers: _Readers, count: int = 100) -> str:
    """Accuracy on tuning scenes, by what a patch shows."""
    _, pixels, dense, _ = render("tuning", 10**6, count)
    features = torch.cat([run_tower(tower, normalise(pixels[i : i + 25]))[0] for i in range(0, count, 25)])[:, 1:]
    right = readers.name(features).argmax(-1) == dense[:, 0]
    color = readers.color(features).argmax(-1) == dense[:, 1]
    groups = {
        "shape": (dense[:, 0] > 0) & (dense[:, 0] <= len(SHAPES)),
        "digit": dense[:, 0] > len(SHAPES),
        "background": dense[:, 0] == 0,
    }
    shares = [f"{name} {right[group].float().mean():.3f}" for name, group in groups.items()]
    return " ".join([*shares, f"color {color[dense[:, 1] > 0].float().mean():.3f}"])


@torch.no_grad()
def encode(model: LlavaForConditionalGeneration, split: str, start: int, count: int, cache: Path | None = None) -> dict:
    """Frozen tower features `[n, 576, C]` float16 of scenes, with the scenes and their dense labels."""
    if cache is not None and cache.exists():
        features = torch.load(cache, weights_only=True)
        scenes = [make_scene(split, start + i) for i in range(count)]
        dense = torch.from_numpy(np.stack([labels(scene)[0] for scene in scenes]))
        return {"features": features, "scenes": scenes, "dense": dense}
    tower = tower_of(model)
    scenes, pixels, dense, _ = render(split, start, count)
    batches = [run_tower(tower, normalise(pixels[i : i + 32]))[0][:, 1:].half() for i in range(0, count, 32)]
    features = torch.cat(batches)
    if cache is not None:
        torch.save(features, cache)
    return {"features": features, "scenes": scenes, "dense": dense}
