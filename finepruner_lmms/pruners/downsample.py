"""A smaller picture: as many visual tokens as the budget says, by looking less closely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.pruners.pool import Pool
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("downsample")
@dataclass(frozen=True, kw_only=True)
class Downsample(Pool):
    """Averages the tower's features over a coarser grid, and projects the means.

    Vision towers of a fixed resolution cannot be shown a smaller picture, so this stands in for it: the picture is seen
    as it is, and its grid shrunk before the projector. `pool` averages behind it. Budgets are those of `pool`.
    """

    caveat: ClassVar[str] = "the tower sees the picture as it is, and its grid is pooled before the projector"
    instead: ClassVar[str] = "method=vanilla with a smaller max_pixels shows the model a smaller picture itself"

    def pooled(self, vision: VisionOutputs) -> Tensor:
        """The projected means: `[B, R, D]`."""
        return vision.project(self.means(vision, vision.features).to(vision.features.dtype))
