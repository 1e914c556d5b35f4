"""FasterVLM: [CLS] Attention is All You Need for Training-Free Visual Token Pruning (Zhang et al., 2412.01818v1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners.importance import ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("fastervlm")
@dataclass(frozen=True, kw_only=True)
class FasterVLM(ByImportance):
    """Keeps the tokens that the vision tower's CLS token attends to most (section 3.2); see `ByImportance`."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.01818v1"
    code: ClassVar[str] = "https://github.com/Theia-4869/FasterVLM"

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The best of the mean over the tower's heads: `[B, N]`."""
        return top_mask(self.by_head(vision).mean(1), self.retained(vision.num_visual_tokens))
