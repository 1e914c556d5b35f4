"""Average pooling: the simplest way to fewer tokens, and one that papers leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.grid import grid_shape, image_side
from finepruner_lmms.pruners.base import Reduction, VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("pool")
@dataclass(frozen=True, kw_only=True)
class Pool(VisionPruner):
    """Replaces the projected tokens by the means of a coarser grid, 8×8 for 64, 8×16 for 128, 12×16 for 192.

    A budget that is no rows × columns within 1:2 is refused: 60 is 6×10, 61 is none.
    """

    def retained(self, num_visual_tokens: int) -> int:
        """R, if it is a grid."""
        retained = super().retained(num_visual_tokens)
        side = image_side(num_visual_tokens)
        if side is None:
            raise FieldError(
                "method", f"{self.name} needs a square grid of visual tokens; this model has {num_visual_tokens}"
            )
        if grid_shape(retained, side) is None:
            near = [n for n in range(1, num_visual_tokens + 1) if grid_shape(n, side)]
            below, above = max(n for n in near if n < retained), min(n for n in near if n > retained)
            raise FieldError(
                "budget",
                f"got {self.budget!r}; {self.name} makes grids, and {retained} tokens are no rows × columns within 1:2",
                value=self.budget,
                fix=f"the nearest that are: {below} and {above}",
            )
        return retained

    def choose(self, vision: VisionOutputs) -> Tensor:
        """None is kept as it is: `[B, N]` False."""
        return torch.zeros(vision.features.shape[:2], dtype=torch.bool, device=vision.features.device)

    def reduce(self, vision: VisionOutputs) -> Reduction:
        """The means, in raster order."""
        keep = self.choose(vision)
        return Reduction(self.pooled(vision).to(vision.projected.dtype), keep, merged=~keep)

    def pooled(self, vision: VisionOutputs) -> Tensor:
        """The means of the projected tokens: `[B, R, D]`."""
        return self.means(vision, vision.projected)

    def means(self, vision: VisionOutputs, tokens: Tensor) -> Tensor:
        """The means of `tokens` `[B, N, K]` over the coarser grid: `[B, R, K]` float32."""
        side = image_side(vision.num_visual_tokens)
        if vision.shape != (side, side) or (vision.grid is not None and vision.grid[0] > 1):
            raise FieldError(
                "method", f"{self.name} needs a square grid of visual tokens; this image is of several tiles, or frames"
            )
        shape = grid_shape(self.retained(vision.num_visual_tokens), side or 0)
        assert side is not None and shape is not None
        square = tokens.float().transpose(1, 2).unflatten(2, (side, side))
        return torch.nn.functional.adaptive_avg_pool2d(square, shape).flatten(2).transpose(1, 2)
