"""A regular grid over the image: blind like `random`, but evenly spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch
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
    """Keeps the tokens of an even grid, the same in every image of one shape; of several tiles, a grid of each."""

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The grid, for each of B images: `[B, N]`."""
        num_visual, batch = vision.num_visual_tokens, len(vision.features)
        places = even_places(vision, self.retained(num_visual))
        return index_to_mask(places[None], num_visual).expand(batch, -1)


def even_places(vision: VisionOutputs, retained: int) -> Tensor:
    """`retained` places, ascending: an even grid of each of the image's grids, in proportion to their tokens.

    Where no grids are known, every so many of the tokens.
    """
    num_visual, device = vision.num_visual_tokens, vision.features.device
    grids, parts, start = vision.grids or ((1, num_visual, 1),), [], 0
    for frames, rows, columns in grids:
        end = start + frames * rows * columns
        if share := end * retained // num_visual - start * retained // num_visual:
            parts.append(start + grid_indices(end - start, share, device, (frames * rows, columns)))
        start = end
    return torch.cat(parts)
