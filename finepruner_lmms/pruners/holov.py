"""HoloV: Don't Just Chase "Highlighted Tokens" in MLLMs (Zou et al., NeurIPS 2025, arXiv 2510.02912)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import take, top_mask
from finepruner_lmms.pruners.importance import ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = 16
_VARIANCE = 0.09  # its weight beside 1000 times the attention
_EPS = 1e-6


@register("holov")
@dataclass(frozen=True, kw_only=True)
class HoloV(ByImportance):
    """Shares the budget among 16 parts of the image, and keeps the most important tokens of each part.

    As the released code does: parts are equally long runs of the raster order (bands, not squares); a part's share
    follows from its tokens' mean of importance and of how much their similarity to the part's other tokens varies,
    rounded down; what is left goes to the parts of the largest shares. A part that is given more tokens than it has
    leaves them to the most important tokens of the others (the released code fills up with zeros), and tokens stand in
    raster order. `importance`: see `ByImportance`.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2510.02912"
    code: ClassVar[str] = "https://github.com/obananas/HoloV"

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The best of each part: `[B, N]`."""
        scores, size = self.by_head(vision).mean(1), vision.num_visual_tokens
        retained = self.retained(size)
        place, there = parts_of(size, _PARTS, scores.device)
        own = scores[:, place].masked_fill(~there, 0)
        quota = shares(self._parts(vision.features, own, place, there), retained)
        order = own.masked_fill(~there, float("-inf")).argsort(dim=-1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter_(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        chosen = (rank < quota[..., None]) & there
        # a shorter part's last place is its first token again, and never chosen
        times = torch.zeros_like(scores, dtype=torch.long)
        times.scatter_add_(1, place.flatten().expand(len(scores), -1), chosen.flatten(1).long())
        return top_mask(scores, retained, required=times > 0)

    def _parts(self, features: Tensor, scores: Tensor, place: Tensor, there: Tensor) -> Tensor:
        """The score of each part: `[B, P]`, from the tokens' `features` `[B, N, C]` and `scores` `[B, P, n]`."""
        tokens = take(features.double(), place.flatten().expand(len(features), -1)).unflatten(1, place.shape)
        unit = tokens / (tokens.norm(dim=-1, keepdim=True) + _EPS)
        others = there[:, None] & there[:, :, None] & ~torch.eye(place.shape[1], dtype=torch.bool, device=place.device)
        similarity = (unit @ unit.transpose(2, 3)).masked_fill(~others, 0)
        count = there.sum(-1, keepdim=True)
        less = (count - 1).clamp(min=1)
        mean = similarity.sum(-1) / less
        # a token's zero with itself counts as one of its similarities
        apart = (similarity - mean[..., None]).square().masked_fill(~there[:, None], 0)
        variance = (apart.sum(-1) / less).masked_fill(~there, 0)
        attention = 1e3 * scores
        scale = (attention.abs().sum(-1) / count[:, 0]) / (variance.sum(-1) / count[:, 0] + _EPS)
        return (attention + _VARIANCE * variance * scale[..., None]).sum(-1) / count[:, 0]


def parts_of(size: int, parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`size` places cut into `parts` runs, the first ones longer by one: the places `[P, n]`, and which are there.

    With fewer places than parts there are as many parts as places.
    """
    parts = min(parts, size)
    least, longer = divmod(size, parts)
    part = torch.arange(parts, device=device)[:, None]
    step = torch.arange(least + (longer > 0), device=device)
    place, there = part * least + part.clamp(max=longer) + step, step < least + (part < longer)
    return torch.where(there, place, part * least + part.clamp(max=longer)), there


def shares(scores: Tensor, total: int) -> Tensor:
    """`total` in proportion to `scores` `[B, P]`, rounded down; what is left to the largest, one each: `[B, P]`."""
    weights = scores / (scores.sum(1, keepdim=True) + _EPS)
    whole = (weights * total).floor().long()
    order = weights.argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return whole + (rank < total - whole.sum(1, keepdim=True))
