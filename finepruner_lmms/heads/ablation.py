"""The strategies of the ablation registry of the LLaVA-FinePruner-Head code base, and their formulas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finepruner_lmms.heads.registry import best_heads, register_head_strategy
from finepruner_lmms.heads.view import EPS, HeadView, how_many, largest, min_max, sort_rows
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@register_head_strategy("sum")
def visual_mass(view: HeadView) -> Tensor:
    """How much of its attention a head spends on the image."""
    return view.mass


@register_head_strategy("variance")
def variance(view: HeadView) -> Tensor:
    """How unevenly the attention is spread, scaled by how much there is."""
    return view.raw_variance


@register_head_strategy("entropy")
def low_entropy(view: HeadView) -> Tensor:
    """The lowest entropy first."""
    return -view.entropy


@register_head_strategy("max_attention")
def max_attention(view: HeadView) -> Tensor:
    """The attention to the best token."""
    return view.attention.amax(-1).double()


@register_head_strategy("attention_range")
def attention_range(view: HeadView) -> Tensor:
    """Between the best and the worst token."""
    return view.range


@register_head_strategy("sparsity")
def sparsity(view: HeadView) -> Tensor:
    """The sum of squares: 1 for a head that looks at one token, 1/N for one that looks everywhere."""
    return view.energy


@register_head_strategy("top_k_sum")
def top_k_sum(view: HeadView) -> Tensor:
    """The attention to the ten best tokens."""
    return largest(view.attention, 10)


@register_head_strategy("weighted_quality")
def weighted_quality(view: HeadView) -> Tensor:
    """Peak, sparsity and few tokens above 1 %. With `resoftmax` no token ever is, and the choice is a tie-break."""
    coverage = how_many(view.deviation, 0.01 - 1 / view.deviation.shape[-1])
    return 0.4 * view.peak + 0.4 * view.energy + 0.2 / (coverage + EPS)


@register_head_strategy("gini_coefficient")
def gini_coefficient(view: HeadView) -> Tensor:
    """The Gini coefficient of the distribution over tokens."""
    size = view.deviation.shape[-1]
    weight = 2 * torch.arange(1, size + 1, dtype=torch.float64, device=view.deviation.device) - size - 1
    # sorting is the whole cost; float32 keeps seven digits of each deviation
    return sort_rows(view.deviation.float()).double() @ weight / size


@register_head_strategy("multi_objective")
def multi_objective(view: HeadView) -> Tensor:
    """Information, diversity and sparsity together; it wants high entropy and high sparsity at once."""
    size, heads = view.deviation.shape[-1], view.deviation.shape[1]
    square = view.deviation.float().square_()
    fourth = torch.linalg.vecdot(square, square).double() / size
    kurtosis = fourth / ((view.spread / size).square() + EPS)
    information = 0.7 * min_max(view.entropy) + 0.3 * min_max(kurtosis)
    # the sum of a head's cosines is one product with the sum of all unit vectors (1/N + deviation) / length
    inverse = 1 / view.energy.sqrt()
    together = (inverse[:, None] @ view.deviation).transpose(1, 2)
    cosines = inverse * ((view.deviation @ together).squeeze(-1) + inverse.sum(1, keepdim=True) / size)
    similarity = (cosines - 1) / max(heads - 1, 1)
    return 0.4 * information + 0.3 * min_max(1 / (similarity + EPS)) + 0.3 * min_max(view.energy)


@register_head_strategy("graph_based")
def graph_based(view: HeadView) -> Tensor:
    """Two rounds of message passing between heads of similar attention, over five features. Entropy dominates them."""
    above = how_many(view.deviation, 0.0) / view.deviation.shape[-1]
    features = torch.stack([view.energy, view.entropy, view.peak, view.variance, above], dim=-1)
    near = (view.alike > 0.1).double()
    near = near - near.diagonal(dim1=1, dim2=2).diag_embed()
    near = near / (near.sum(-1, keepdim=True) + EPS)
    for _ in range(2):
        features = (features + near @ features).relu()
    return features.mean(-1)


@register_head_strategy("hierarchical")
def hierarchical(view: HeadView) -> Tensor:
    """First the twice as many sparse heads, then the best of them by entropy, divergence, distance and stability."""
    heads, size = view.deviation.shape[1:]
    if heads <= max(view.heads, 8):
        return 0.5 * view.energy + 0.3 * view.peak + 0.2 * view.variance
    coarse = 0.6 * view.energy + 0.4 * (1 - min_max(view.entropy, 0))
    kept = best_heads(coarse, min(heads, max(2 * view.heads, view.heads + 4)))
    figures = torch.stack([view.entropy, view.variance, _distance(view, kept)])
    entropy, variance, distance = figures.gather(2, kept.expand(3, -1, -1))
    divergence = -entropy - math.log(1 / size + EPS)
    stability = 1 / (variance.sqrt() + EPS)
    metrics = zip((0.3, 0.25, 0.25, 0.2), (entropy, divergence, distance, stability), strict=True)
    scores = torch.stack([weight * min_max(metric, 0) for weight, metric in metrics]).sum(0)
    return torch.full_like(coarse, -math.inf).scatter(1, kept, scores)


def _distance(view: HeadView, kept: Tensor) -> Tensor:
    """How far the unit vector of each head's p is from the mean of those that are `kept` `[B, K]`: `[B, H]`.

    Unit vectors are (1/N + deviation) / length, and so is their mean; the two parts are at right angles.
    """
    inverse = 1 / view.energy.sqrt()
    share = torch.zeros_like(inverse).scatter(1, kept, 1 / kept.shape[1]) * inverse
    centre = share[:, None] @ view.deviation
    own = inverse.square() * view.spread
    across = inverse * torch.linalg.vecdot(view.deviation, centre)
    apart = own - 2 * across + torch.linalg.vecdot(centre, centre)
    # heads that are all alike are at no distance; what rounding leaves of the difference would be stretched to 0..1
    apart = apart.masked_fill(apart < 1e-12 * own, 0)
    level = (inverse - share.sum(1, keepdim=True)).square() / view.deviation.shape[-1]
    return (apart + level).sqrt()
