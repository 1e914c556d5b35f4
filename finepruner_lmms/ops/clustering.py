"""Density-peak clustering of tokens (Rodriguez and Laio, Science 2014, with k-nearest-neighbour densities)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.selection import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor


def merge_by_density_peaks(tokens: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The means of `clusters` clusters of `tokens` `[B, M, D]`: `[B, clusters, D]`; and their centres `[B, clusters]`.

    A token's density follows from the distance to its `clusters` nearest neighbours, itself among them. Centres are
    dense and far from anything denser; the others join the nearest centre. Float32 or better, no noise.

    With two clusters, the densest token and its nearest neighbour are always equally dense, because each is the
    other's. Equal candidates are ordered by the distance to their next neighbour, then by their place.
    """
    x = at_least_float32(tokens)
    distance = (_distances(x) / x.shape[-1] ** 0.5).to(x.dtype)
    sorted_distance = distance.sort(dim=-1).values
    density = (-sorted_distance[..., :clusters].square().mean(-1)).exp()
    denser = density[:, None] > density[..., None]
    farthest = distance.flatten(1).amax(1)[:, None]
    gap = distance.masked_fill(~denser, float("inf")).amin(-1)
    gap = torch.where(denser.any(-1), gap, farthest)
    by_next = sorted_distance[..., min(clusters, x.shape[1] - 1)].argsort(dim=1, stable=True)
    best = (density * gap).gather(1, by_next).argsort(dim=1, descending=True, stable=True)[:, :clusters]
    centres = by_next.gather(1, best)
    to_centre = distance.gather(2, centres[:, None].expand(-1, distance.shape[1], -1))
    member = (to_centre <= to_centre.amin(-1, keepdim=True)).to(x.dtype)
    member = member * (member.cumsum(-1) == 1)  # the first of equally near centres
    own = torch.eye(clusters, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    member = member.scatter(1, centres[..., None].expand(-1, -1, clusters), own)
    means = member.transpose(1, 2) @ x / member.sum(1)[..., None]
    return means, centres


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances `[B, M, M]` of `x` `[B, M, D]` by one product, in float64.

    Sums of squared differences would read M times as much. As those are, it is symmetric, and 0 between equal tokens.
    """
    values = x.double()
    products = values @ values.transpose(1, 2)
    square = products.diagonal(dim1=1, dim2=2)
    apart = square[:, :, None] + square[:, None] - products - products.transpose(1, 2)
    # of equal tokens, rounding may leave a little
    return apart.masked_fill(apart < 1e-14 * (square[:, :, None] + square[:, None]), 0).sqrt()
