"""VisionZip: Longer is Better but Not Necessary in Vision Language Models (Yang et al., CVPR 2025, 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import mask_to_index, take, top_mask, unit_vectors
from finepruner_lmms.pruners.base import Reduction
from finepruner_lmms.pruners.budget import round_half_up
from finepruner_lmms.pruners.importance import ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("visionzip")
@dataclass(frozen=True, kw_only=True)
class VisionZip(ByImportance):
    """Keeps the CLS token and the dominant patches, and merges the rest into contextual tokens (section 3.2).

    10 of 64 tokens are contextual, as published for 64, and the same share of other budgets. The CLS token counts.
    Without importance by the CLS token (see `ByImportance`) it is not kept either, and one more patch is.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.04467"
    code: ClassVar[str] = "https://github.com/dvlab-research/VisionZip"

    @property
    def reads(self) -> tuple[str, ...]:
        """The CLS token itself, too, and the keys by which tokens are merged."""
        return (*super().reads, *(("cls_projected",) if self.lead else ()), "keys")

    @property
    def lead(self) -> int:
        """Whether the CLS token is kept."""
        return int(self.importance == "cls")

    def contextual(self, num_visual_tokens: int) -> int:
        """How many tokens are merged ones."""
        retained = self.retained(num_visual_tokens)
        wanted = round_half_up(Fraction(10 * retained, 64))
        return min(wanted, num_visual_tokens - (retained - wanted - self.lead))

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The dominant patches, `[B, N]`: fewer than the budget by the CLS token and the contextual ones."""
        scores = self.by_head(vision).sum(1)
        dominant = self.retained(vision.num_visual_tokens) - self.contextual(vision.num_visual_tokens) - self.lead
        return top_mask(scores, dominant)

    def reduce(self, vision: VisionOutputs) -> Reduction:
        """CLS, the dominant patches in raster order, and the contextual tokens."""
        keep, contextual = self.choose(vision), self.contextual(vision.num_visual_tokens)
        dominant = self.retained(vision.num_visual_tokens) - contextual - self.lead
        order = mask_to_index(keep, vision.num_visual_tokens)
        own, rest = order[:, :dominant], order[:, dominant:]
        tokens = [vision.need("cls_projected", self.name)] if self.lead else []
        tokens.append(take(vision.projected, own))
        if contextual:
            keys = take(vision.need("keys", self.name), rest)
            merged = merge_into_targets(take(vision.features, rest), keys, contextual)
            tokens.append(vision.project(merged.to(vision.features.dtype)))
        return Reduction(torch.cat(tokens, dim=1), keep, lead=self.lead, merged=~keep if contextual else None)


def merge_into_targets(features: Tensor, keys: Tensor, contextual: int) -> Tensor:
    """`contextual` merged tokens of `features` `[B, M, C]`, matched by `keys` `[B, M, K]`: `[B, contextual, C]`.

    Targets are evenly spaced; every other token joins the target nearest in angle. A merged token is the *sum* of its
    target and the mean of those that joined, as in the released code.
    """
    count = features.shape[1]
    step = max(1, count // contextual)
    place = torch.arange(count, device=features.device)
    is_target = (place % step == 0) & (place < contextual * step)
    order = is_target.int().argsort(descending=True, stable=True)
    targets, others = order[:contextual], order[contextual:]
    unit = unit_vectors(keys)
    nearest = (unit[:, others] @ unit[:, targets].transpose(1, 2)).argmax(-1, keepdim=True)
    joined = (nearest == torch.arange(contextual, device=nearest.device)).to(unit.dtype)
    total = joined.transpose(1, 2) @ features[:, others].to(unit.dtype)
    mean = total / joined.sum(1).clamp(min=1)[..., None]
    return features[:, targets].to(unit.dtype) + mean
