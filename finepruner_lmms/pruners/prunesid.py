"""PruneSID: synergistic importance and diversity of visual tokens (ICLR 2026, arXiv 2603.09480)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_integer
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.principal import principal_components
from finepruner_lmms.ops.selection import mask_to_index, take, unit_vectors
from finepruner_lmms.pruners.base import Reduction
from finepruner_lmms.pruners.importance import ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("prunesid")
@dataclass(frozen=True, kw_only=True)
class PruneSID(ByImportance):
    """Groups tokens by principal components, and keeps the important and unlike ones of every group.

    As the released code, for a budget of K: the components are the K/4 first of the sigmoid of the features before the
    projector, by a randomised algorithm (drawn from `seed` here); a token belongs to the component of its largest
    loading. In a group, tokens are visited by importance, and those that are more alike than K/32 times the mean cosine
    of all pairs to one that is kept are set aside. Every group gives one token, and more in proportion to how many were
    not set aside, at most 5 for every 64 of the budget; the CLS token is kept, too, and counts. Kept tokens stand in
    raster order, those of the released code by group. `importance`: see `ByImportance`; without the CLS token's
    attention it is not kept either.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2603.09480"
    code: ClassVar[str] = "https://github.com/ZhengyaoFang/PruneSID"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0, 2**31 - 1)

    @property
    def lead(self) -> int:
        """Whether the CLS token is kept."""
        return int(self.importance == "cls")

    @property
    def reads(self) -> tuple[str, ...]:
        """The CLS token itself, too."""
        return (*super().reads, *(("cls_projected",) if self.lead else ()))

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The tokens of all groups: `[B, N]`, one fewer than the budget where the CLS token is kept."""
        retained = self.retained(vision.num_visual_tokens)
        groups = max(retained // 4, 1)
        scores = self.by_head(vision).sum(1)
        features = vision.features.double()
        loadings = principal_components(features.sigmoid().mT, groups, self.seed).abs()
        member = (loadings.argmax(-1, keepdim=True) == torch.arange(groups, device=features.device)).long()
        kept = unlike(features, scores, member, retained / 32)
        size, alone = member.sum(1), (member * kept[..., None]).sum(1)
        quota = quotas(size, alone, retained, self.lead)
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, kept.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        in_order = take(member, order)
        before = ((in_order.cumsum(1) - in_order) * in_order).sum(-1)  # how many of its group come first
        chosen = before < (in_order * quota[:, None]).sum(-1)
        return torch.zeros_like(kept).scatter_(1, order, chosen)

    def reduce(self, vision: VisionOutputs) -> Reduction:
        """The CLS token, then those chosen."""
        keep = self.choose(vision)
        own = take(vision.projected, mask_to_index(keep, self.retained(vision.num_visual_tokens) - self.lead))
        tokens = [vision.need("cls_projected", self.name)] if self.lead else []
        return Reduction(torch.cat([*tokens, own], dim=1), keep, lead=self.lead)


def unlike(features: Tensor, scores: Tensor, member: Tensor, ratio: float) -> Tensor:
    """Which tokens no better one of their group is like: `[B, N]`, by `scores` `[B, N]` (non-maximum suppression).

    Alike are tokens of `features` `[B, N, C]` whose cosine is above `ratio` times the mean over all pairs; `member`
    `[B, N, G]` is one at the group of each. A token without importance is never kept.
    """
    count = scores.shape[1]
    unit = unit_vectors(features)
    cosine = unit @ unit.mT
    pairs = cosine.triu(1).sum((1, 2)) / max(count * (count - 1) // 2, 1)
    together = (member @ member.mT).bool()
    alike = (cosine > ratio * pairs[:, None, None]) & together
    order = scores.argsort(dim=1, descending=True, stable=True)
    alike = alike.gather(1, order[..., None].expand_as(alike)).gather(2, order[:, None].expand_as(alike))
    aside = scores.gather(1, order) <= 0
    for place in range(count - 1):
        aside[:, place + 1 :] |= alike[:, place, place + 1 :] & ~aside[:, place : place + 1]
    return torch.zeros_like(aside).scatter_(1, order, ~aside)


def quotas(size: Tensor, alone: Tensor, retained: int, lead: int) -> Tensor:
    """How many tokens each group gives: `[B, G]`, `retained` - `lead` in all.

    `size` `[B, G]` are the groups' tokens, `alone` those of them that nothing better is like.
    """
    total, some = retained - lead, size.clamp(max=1)
    most = torch.minimum(alone, size).clamp(max=5 * math.ceil(retained / 64))
    # all limits rise together until the budget fits in, each to its group's size
    rise = torch.arange(retained + 1, device=size.device)[:, None, None]
    enough = torch.minimum(most + rise, size).sum(-1) >= retained
    most = torch.minimum(most + (~enough).sum(0)[:, None], size)
    rest = (total - some.sum(1, keepdim=True)).clamp(min=0)
    until = ((alone.cumsum(1) * rest).double() / alone.sum(1, keepdim=True).clamp(min=1)).round().long()
    quota = torch.minimum(until.diff(dim=1, prepend=torch.zeros_like(rest)) + some, most)
    # what does not fit goes to the groups with most tokens of their own
    order = alone.argsort(dim=1, descending=True, stable=True)
    room = (most - quota).gather(1, order)
    missing = (total - quota.sum(1, keepdim=True)).clamp(min=0)
    given = (missing - (room.cumsum(1) - room)).clamp(min=0).minimum(room)
    return (quota + torch.zeros_like(quota).scatter_(1, order, given)).clamp(max=total)
