"""What a frozen tower makes of pictures, worked out once and kept in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from demo_training.hard.contrast import Captioned
from demo_training.hard.views import Views, laid_out
from demo_training.tower import normalise, run_tower
from finepruner_lmms.demo.hard.scenes import Scene

_AT_ONCE = 16


@dataclass(frozen=True)
class Seen:
    """Scenes, features `[n, N, C]` float16 of all their patches, and where these are in the 24×24 plane `[n, N]`.

    `telling` `[n, N]` orders patches by how much better than the others of their picture they fit some phrase, as
    contrast has taught the tower, the best first. Those are the patches that cheap steps see: no label says which show
    something.
    """

    scenes: list[Scene]
    features: Tensor
    places: Tensor
    telling: Tensor

    def some(self, chosen: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Features `[B, K, C]` and places `[B, K]` of the `kept` most telling patches; 0: of all."""
        features, places = self.features[chosen], self.places[chosen]
        if 0 < kept < places.shape[1]:
            first = self.telling[chosen, :kept].long().sort(1).values
            features = features.gather(1, first[..., None].expand(-1, -1, features.shape[-1]))
            places = places.gather(1, first)
        return features.float(), places

    def shown(self, kept: int) -> float:
        """The share of things of which at least one patch is among the `kept` most telling: measured, not trained."""
        hits: list[bool] = []
        for scene, order in zip(self.scenes, self.telling.tolist(), strict=True):
            first, grid = set(order[:kept]), math.isqrt(len(order))
            hits += [not first.isdisjoint(thing.tokens(grid)) for thing in scene.things]
        return sum(hits) / len(hits)


@torch.no_grad()
def see(tower: nn.Module, captioned: Captioned, pictures: Views, shift: bool = False) -> Seen:
    """Features as LLaVA reads them; with `shift`, each picture lies somewhere else in the plane."""
    device = next(tower.parameters()).device
    places = pictures.places(len(pictures.scenes), shift)
    parts, telling = [], []
    for pixels, there in zip(pictures.pixels.split(_AT_ONCE), places.split(_AT_ONCE), strict=True):
        features = run_tower(tower, normalise(pixels.to(device)), there.to(device))[0][:, 1:]
        parts.append(features.half().cpu())
        telling.append(captioned.telling(features).argsort(dim=1, descending=True, stable=True).short().cpu())
    return Seen(pictures.scenes, torch.cat(parts), places, torch.cat(telling))


def write(file: Path, train: Seen, tuning: Seen) -> None:
    """Keep both; scenes are laid out anew by `read`."""
    kept = {}
    for split, seen in (("train", train), ("tuning", tuning)):
        kept[split] = {"features": seen.features, "places": seen.places.short(), "telling": seen.telling}
    beside = file.with_suffix(".new")
    torch.save(kept, beside)
    beside.replace(file)


def read(file: Path, grid: int, start: int = 0) -> tuple[Seen, Seen]:
    """What `write` kept of the pictures `start`, `start + 1`, … of the training split and 0, 1, … of the tuning one."""
    kept, found = torch.load(file, weights_only=True), []
    for split, of in kept.items():
        scenes = laid_out(split, start if split == "train" else 0, len(of["features"]), grid)
        found.append(Seen(scenes, of["features"], of["places"].long(), of["telling"]))
    train, tuning = found
    return train, tuning
