"""Anchors: tokens that stand for many others and are unlike each other, and the groups that join them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import mask_to_index, take, top_mask, unit_vectors

if TYPE_CHECKING:
    from torch import Tensor


def anchor_mask(tokens: Tensor, candidates: Tensor, count: int) -> Tensor:
    """`count` anchors among the `candidates` `[B, N]` bool of `tokens` `[B, N, D]`: `[B, N]` bool.

    A candidate's density is the sum of its cosines to all candidates; it is worth its density times how unlike it is,
    in cosine, to the most similar of those that are denser. The densest of all is worth its density.
    """
    unit = unit_vectors(tokens)
    cosine, among = unit @ unit.mT, candidates[:, None, :]
    density = (cosine * among).sum(-1, dtype=torch.float64)
    denser = (density[:, None, :] > density[:, :, None]) & among
    nearest = cosine.masked_fill(~denser, float("-inf")).amax(-1).double()
    unlike = 1 - torch.where(denser.any(-1), nearest, torch.zeros_like(nearest))
    return top_mask(density * unlike, count, candidates)


def group_means(tokens: Tensor, sources: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each of the `count` `targets` `[B, N]` bool as the mean of itself and of the sources nearest to it in angle.

    `sources` `[B, N]` bool are the others of `tokens` `[B, N, D]` that join. Returns the means `[B, count, D]` in
    float32 or better, and which tokens the targets are, ascending: `[B, count]`.
    """
    index, unit = mask_to_index(targets, count), unit_vectors(tokens)
    nearest = (unit @ take(unit, index).mT).argmax(-1, keepdim=True)
    joined = (nearest == torch.arange(count, device=tokens.device)) & sources[..., None]
    weights = joined.to(unit.dtype)
    total = take(tokens, index).to(unit.dtype) + weights.mT @ tokens.to(unit.dtype)
    return total / (1 + weights.sum(1))[..., None], index
