"""A regular grid over the image: blind like `random`, but evenly spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.ops.grid import grid_indices
from finepruner_lmms.ops.selection import index_to_mask
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(VisionPruner):
    """Keeps the tokens of an even grid, the same in every image of one shape; of several tiles, every so many."""

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The grid, for each of B images: `[B, N]`."""
        num_visual, batch = vision.num_visual_tokens, len(vision.features)
        places = grid_indices(
            num_visual, self.retained(num_visual), vision.features.device, vision.shape or (num_visual, 1)
        )
        return index_to_mask(places[None], num_visual).expand(batch, -1)
