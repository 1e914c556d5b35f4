"""HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention (Liu et al., 2508.00553)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_integer, check_share
from finepruner_lmms.ops.grid import with_neighbours
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

_OBJECT_LAYER = Fraction(9, 24)  # of CLIP-L; in towers of another depth as deep in proportion
_CROSS = 5  # an anchor and its four neighbours


@register("hiprune")
@dataclass(frozen=True, kw_only=True)
class HiPrune(VisionPruner):
    """Keeps anchors of a middle layer of the tower with their neighbours, and what a late layer attends to (section 4).

    A token's attention is the mean over the heads and all queries of a layer, the CLS token's among them. Of the budget
    K, round(`alpha`·K / 5) are anchors, the best in layer `tower_layer` (counted from 1; None: 9 of CLIP-L's 24, as
    deep elsewhere); their neighbours in the grid stay with them; the rest are the best of the layer that is projected.
    Two deviations: a neighbour is none across the edge of the grid, where the released code takes the other end of
    the next row; and where anchors with neighbours exceed the budget, neighbours give way.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2508.00553"
    code: ClassVar[str] = "https://github.com/Danielement321/HiPrune"

    alpha: float = 0.1
    tower_layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha", self.alpha)
        self._write("alpha", float(self.alpha))
        if self.tower_layer is not None:
            check_integer("tower_layer", self.tower_layer, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """What patches receive, late and in the middle; the CLS token's attention, too, where there is one."""
        return ("received_attention", "early_received")

    @property
    def early_layer(self) -> int | Fraction:
        """The layer of the anchors."""
        return _OBJECT_LAYER if self.tower_layer is None else self.tower_layer

    def choose(self, vision: VisionOutputs) -> Tensor:
        """Anchors, neighbours and the best of the rest: `[B, N]`."""
        if not (grids := vision.grids):
            raise FieldError("method", "hiprune needs to know the grids that the visual tokens of several tiles fill")
        retained = self.retained(vision.num_visual_tokens)
        middle = self._attention(vision, "early_received", vision.early_cls_attention)
        anchors = top_mask(middle, round(retained * self.alpha / _CROSS))
        late = self._attention(vision, "received_attention", vision.cls_attention)
        # attention is at most 1: neighbours come before all others, and anchors before them
        late = late.masked_fill(with_neighbours(anchors, grids), 2.0).masked_fill(anchors, 3.0)
        return top_mask(late, retained)

    def _attention(self, vision: VisionOutputs, received: str, cls: Tensor | None) -> Tensor:
        """The mean over heads and queries: `[B, N]` float64."""
        patches = vision.need(received, self.name).double().mean(1)
        if cls is None:
            return patches
        count = vision.num_visual_tokens
        return (count * patches + cls.double().mean(1)) / (count + 1)
