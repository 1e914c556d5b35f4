"""How much of a picture a token carries, as the vision tower sees it: by this FasterVLM, VisPruner, VisionZip rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.errors import check_choice
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

IMPORTANCES = ("cls", "received", "norm")
_READS = {"cls": "cls_attention", "received": "received_attention", "norm": "features"}


@dataclass(frozen=True, kw_only=True)
class ByImportance(VisionPruner):
    """A vision-side method that ranks tokens by the attention of the tower's CLS token, or what stands in for it.

    `importance="cls"`: as published. `"received"`: the attention that a token receives from all patches of its picture,
    which the methods' ports to towers without a CLS token take (VisPruner's and VisionZip's SigLIP and Qwen code).
    `"norm"`: the L2 norm of the token's feature, which costs nothing. The last two are not the published methods on
    LLaVA-1.5.
    """

    importance: str = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("importance", self.importance, IMPORTANCES)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the importance is made of."""
        return (_READS[self.importance],)

    def by_head(self, vision: VisionOutputs) -> Tensor:
        """The importance that each head of the tower gives: `[B, Hc, N]` float64; a single one for `norm`."""
        if self.importance == "norm":
            return vision.features.double().norm(dim=-1)[:, None]
        return vision.need(_READS[self.importance], self.name).double()
