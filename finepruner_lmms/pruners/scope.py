"""SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs (Deng et al., NeurIPS 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_number
from finepruner_lmms.ops.facility import cosines, cover
from finepruner_lmms.ops.selection import index_to_mask
from finepruner_lmms.pruners.importance import ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("scope")
@dataclass(frozen=True, kw_only=True)
class Scope(ByImportance):
    """Keeps tokens that cover the image, each by how much the tower's CLS token attends to it.

    A pick is worth what it adds to the coverage of all patches by cosine, before the projector, times its saliency to
    the power of `alpha`; the saliency is the CLS token's attention, the heads added up. 0 is coverage alone.
    `importance`: see `ByImportance`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2510.24214"
    code: ClassVar[str] = "https://github.com/kinredon/SCOPE"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0)
        self._write("alpha", float(self.alpha))

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The greedy cover: `[B, N]`."""
        saliency = self.by_head(vision).sum(1)
        picks = cover(
            cosines(vision.features), self.retained(vision.num_visual_tokens), candidates=saliency**self.alpha
        )
        return index_to_mask(picks, vision.num_visual_tokens)
