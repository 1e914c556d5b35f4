"""DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (Alvar et al., CVPR 2025, 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.fused import kernels_for
from finepruner_lmms.ops.products import pair_products
from finepruner_lmms.ops.selection import index_to_mask, unit_vectors
from finepruner_lmms.pruners.base import VisionPruner
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrune(VisionPruner):
    """Keeps tokens far from each other: greedy max-min of the cosine distance of projected tokens (section 3.2)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2503.02175"
    code: ClassVar[str] = "https://github.com/vbdi/divprune"

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The farthest points: `[B, N]`."""
        distance = 1 - pair_products(unit_vectors(vision.projected))
        picks = farthest_points(distance, self.retained(vision.num_visual_tokens))
        return index_to_mask(picks, vision.num_visual_tokens)


def farthest_points(distance: Tensor, count: int) -> Tensor:
    """`count` tokens in the order of picking, `[B, count]`, by `distance` `[B, N, N]`; the lower one wins a tie.

    First the token farthest from its nearest neighbour, then always the one farthest from all picked ones.
    """
    size = distance.shape[1]
    if size == 1:
        return torch.zeros(len(distance), count, dtype=torch.long, device=distance.device)
    itself = torch.eye(size, dtype=torch.bool, device=distance.device)
    # two tokens that are each other's nearest tie, unless their distance was rounded in two ways: a product of matrices
    # need not be symmetric in its last bit
    alike = torch.maximum(distance, distance.transpose(1, 2))
    pick = alike.masked_fill(itself, float("inf")).amin(1).argmax(1, keepdim=True)
    rows = distance.masked_fill(itself, float("-inf"))  # so that a picked token is never the farthest again
    if (fused := kernels_for(rows)) is not None:
        return fused.farthest_points(rows, pick, count)
    picks, nearest = [pick], torch.full_like(distance[:, 0], float("inf"))
    rows = rows.reshape(-1, size)
    offset = torch.arange(0, len(rows), size, device=distance.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, rows.index_select(0, pick.squeeze(1) + offset))
        pick = nearest.argmax(1, keepdim=True)
        picks.append(pick)
    return torch.cat(picks, dim=1)
