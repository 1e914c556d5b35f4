"""A regular grid over the image: blind like `random`, but evenly spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.ops.grid import grid_indices
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(VisionPruner):
    """Keeps the tokens of an even grid, the same in every image."""

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The grid, for each of B images: `[B, N]`."""
        num_visual = vision.num_visual_tokens
        mask = torch.zeros(num_visual, dtype=torch.bool)
        mask[grid_indices(num_visual, self.retained(num_visual))] = True
        return mask.to(vision.features.device).expand(len(vision.features), -1)
