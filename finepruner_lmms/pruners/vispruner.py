"""VisPruner: Beyond Text-Visual Attention, Exploiting Visual Cues (Zhang et al., ICCV 2025, arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_share
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.fused import kernels_for
from finepruner_lmms.ops.selection import index_to_mask, take, unit_vectors
from finepruner_lmms.pruners.importance import ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

_STEP = 8  # tokens removed per round


@register("vispruner")
@dataclass(frozen=True, kw_only=True)
class VisPruner(ByImportance):
    """Keeps important tokens, by the attention of the tower's CLS token, and diverse ones among the rest.

    `important_ratio` of the budget is important (section 3.2); the others remain after rounds of bipartite matching
    that remove, of every second token, those most similar to one of the others (3.3). With ratio 1 this is FasterVLM.
    Computed in float64: a round's outcome decides who meets whom in the next, so one rounding error changes a third
    of the tokens. `importance`: see `ByImportance`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.01818"
    code: ClassVar[str] = "https://github.com/Theia-4869/VisPruner"

    important_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("important_ratio", self.important_ratio)
        self._write("important_ratio", float(self.important_ratio))

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The important and the diverse tokens: `[B, N]`."""
        scores = self.by_head(vision).mean(1)
        retained = self.retained(vision.num_visual_tokens)
        order = scores.argsort(dim=1, descending=True, stable=True)
        important = int(retained * self.important_ratio)
        kept = order[:, :important]
        if diverse := retained - important:
            rest = order[:, important:]
            chosen = diverse_tokens(take(vision.features, rest), diverse)
            kept = torch.cat([kept, rest.gather(1, chosen)], dim=1)
        return index_to_mask(kept, vision.num_visual_tokens)


def diverse_tokens(features: Tensor, retained: int, step: int = _STEP) -> Tensor:
    """Which `retained` of `features` `[B, M, C]` are left after rounds of matching: `[B, retained]`.

    A round parts the remaining tokens by their place into even and odd ones and removes the `step` even ones nearest
    in angle to an odd one. The even survivors go first in the next round, the most similar first: this order decides
    who is even then. Similarities are computed once; the released code does so in every round.
    """
    unit = unit_vectors(features.double())
    similarity = unit @ unit.transpose(1, 2)
    if (fused := kernels_for(similarity)) is not None:
        return fused.diverse_tokens(similarity, retained, step)
    batch, size, _ = features.shape
    rows, offset = similarity.flatten(0, 1), torch.arange(0, batch * size, size, device=features.device)[:, None]
    left = torch.arange(size, device=features.device).expand(batch, -1)
    while left.shape[1] > retained:
        even, odd = left[:, ::2], left[:, 1::2]
        removed = min(step, left.shape[1] - retained, even.shape[1])
        # whole rows, in which all but odd tokens count as infinitely far: on a CPU cheaper than picking pairs
        barred = similarity.new_full((batch, size), float("-inf")).scatter_(1, odd, 0.0)
        near = rows.index_select(0, (even + offset).flatten()).view(batch, -1, size)
        nearest = near.add_(barred[:, None]).amax(-1)
        survivors = nearest.argsort(dim=1, descending=True, stable=True)[:, removed:]
        left = torch.cat([even.gather(1, survivors), odd], dim=1)
    return left
