"""Which attention heads guide the pruning: head strategies, and the selection of the best-scored heads.

The strategies are those of the ablation registry of the LLaVA-FinePruner-Head code base. It takes a softmax of the
attention, which is a softmax already: `normalise="resoftmax"`. The result is nearly uniform, and several strategies
rank heads by differences below half precision, some below float32: see `HeadView` for how ours keep them.
`normalise="renormalise"` divides by the head's attention to the image instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from finepruner_lmms.checks import check_choice, nearest
from finepruner_lmms.selection import at_least_float32

EPS = 1e-8
NORMALISATIONS = ("resoftmax", "renormalise")


class HeadView:
    """What a head strategy looks at: the attention of B samples and H heads to N visual tokens.

    `attention` `[B, H, N]`, and `heads`, how many are to be chosen. `p`, the attention normalised over the tokens, is
    nearly uniform under `resoftmax`: what tells heads apart are its deviations from 1/N. They, and everything that
    follows from them, are float64, so that a ranking does not drown in rounding. What is not read is not computed.
    """

    def __init__(self, attention: Tensor, heads: int, normalise: str = "resoftmax") -> None:
        self.attention = at_least_float32(attention)
        self.heads, self.normalise = heads, normalise

    @cached_property
    def _normalised(self) -> tuple[Tensor, Tensor]:
        """Deviations `[B, H, N]` and entropy `[B, H]`, in as few passes over the values as can be."""
        size, values = self.attention.shape[-1], self.attention.double()
        if self.normalise == "resoftmax":
            p = values.exp()
            total = p.sum(-1, keepdim=True)
            # log p is attention - log total, which needs no logarithm of every value; the 1e-8 adds N of them
            entropy = (total.log() - torch.linalg.vecdot(p, values)[..., None] / total).squeeze(-1) - size * EPS
            return p.div_(total).sub_(1 / size), entropy
        p = values / values.sum(-1, keepdim=True).clamp_min(1e-30)
        return p - 1 / size, -torch.linalg.vecdot(p, (p + EPS).log_())

    @property
    def deviation(self) -> Tensor:
        """`[B, H, N]`: p - 1/N; each row sums to 0."""
        return self._normalised[0]

    @property
    def entropy(self) -> Tensor:
        """`[B, H]`: -sum p log(p + 1e-8)."""
        return self._normalised[1]

    @cached_property
    def spread(self) -> Tensor:
        """`[B, H]`: the sum of squares of the deviations."""
        return torch.linalg.vecdot(self.deviation, self.deviation)

    @property
    def energy(self) -> Tensor:
        """`[B, H]`: the sum of squares of p."""
        return self.spread + 1 / self.attention.shape[-1]

    @cached_property
    def peak(self) -> Tensor:
        """`[B, H]`: the maximum of p."""
        return self.deviation.amax(-1) + 1 / self.attention.shape[-1]

    @property
    def variance(self) -> Tensor:
        """`[B, H]`: of p, unbiased."""
        return self.spread / max(self.attention.shape[-1] - 1, 1)

    @cached_property
    def alike(self) -> Tensor:
        """`[B, H, H]`: the cosines between the heads' p."""
        size = self.attention.shape[-1]
        rows = self.deviation.float()  # what is added to 1/N is small, so its rounding is too
        dots = (rows @ rows.transpose(1, 2)).double() + 1 / size
        length = self.energy.sqrt()
        return dots / (length[:, :, None] * length[:, None])

    @cached_property
    def mass(self) -> Tensor:
        """`[B, H]`: the attention to the image."""
        return self.attention.sum(-1, dtype=torch.float64)

    @cached_property
    def raw_variance(self) -> Tensor:
        """`[B, H]`: of the attention itself, unbiased."""
        centred = self.attention - self.attention.mean(-1, keepdim=True)
        return torch.linalg.vecdot(centred, centred).double() / max(self.attention.shape[-1] - 1, 1)

    @cached_property
    def range(self) -> Tensor:
        """`[B, H]`: between the largest and the smallest attention."""
        return self.attention.amax(-1).double() - self.attention.amin(-1).double()

    @cached_property
    def unit(self) -> Tensor:
        """`[B, H, N]`: the attention rows, of length 1."""
        return unit_rows(self.attention.double())


HeadStrategy = Callable[[HeadView], Tensor]
_STRATEGIES: dict[str, HeadStrategy] = {}
HEAD_STRATEGIES: tuple[str, ...] = ()


def register_head_strategy(name: str) -> Callable[[HeadStrategy], HeadStrategy]:
    """Add a head strategy: a function from a `HeadView` to head scores `[B, H]`, larger is better."""

    def add(function: HeadStrategy) -> HeadStrategy:
        global HEAD_STRATEGIES
        _STRATEGIES[name] = function
        HEAD_STRATEGIES = tuple(sorted(_STRATEGIES))
        return function

    return add


def min_max(scores: Tensor, eps: float = EPS) -> Tensor:
    """Stretch `[B, H]` to 0..1 over the heads; without `eps`, heads that are all equal become 0."""
    low, high = scores.aminmax(dim=-1, keepdim=True)
    width = high - low + eps
    return (scores - low) / width.masked_fill(width == 0, 1)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays zero."""
    return rows / torch.linalg.vecdot(rows, rows).sqrt_().clamp_min_(1e-12)[..., None]


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
    entropy, energy, variance = (figure.gather(1, kept) for figure in (view.entropy, view.energy, view.variance))
    divergence = -entropy - math.log(1 / size + EPS)
    # unit vectors of p are (1/N + deviation) / length, and so is their mean; the two parts are at right angles
    inverse = 1 / energy.sqrt()
    flat = (kept + heads * torch.arange(len(kept), device=kept.device)[:, None]).flatten()
    rows = view.deviation.flatten(0, 1).index_select(0, flat).unflatten(0, kept.shape)
    unit = rows.mul_(inverse[..., None])
    apart = unit.sub_(unit.mean(1, keepdim=True))
    level = (inverse - inverse.mean(1, keepdim=True)) / size
    distance = (torch.linalg.vecdot(apart, apart) + size * level.square()).sqrt()
    stability = 1 / (variance.sqrt() + EPS)
    metrics = zip((0.3, 0.25, 0.25, 0.2), (entropy, divergence, distance, stability), strict=True)
    scores = torch.stack([weight * min_max(metric, 0) for weight, metric in metrics]).sum(0)
    return torch.full_like(coarse, -math.inf).scatter(1, kept, scores)


def largest(attention: Tensor, count: int) -> Tensor:
    """The sum of the `count` largest of each row, `[B, H]`."""
    return sort_rows(attention)[..., -count:].sum(-1).double()


def how_many(values: Tensor, above: float) -> Tensor:
    """How many of each row are above a value, `[B, H]`; comparing and counting takes five times as long."""
    return (values - above).sign_().relu_().sum(-1)


def sort_rows(values: Tensor) -> Tensor:
    """`[..., N]` ascending. On a CPU NumPy sorts rows of this size fifteen times as fast as torch."""
    if values.is_cpu:
        return torch.from_numpy(np.sort(np.from_dlpack(values), axis=-1))
    return values.sort(dim=-1).values


def head_scores(attention: Tensor, strategy: str, heads: int, normalise: str = "resoftmax") -> Tensor:
    """The score `[B, H]` of each head of `attention` `[B, H, N]`, in float64, for choosing `heads` of them."""
    if strategy not in _STRATEGIES:
        hint = nearest(strategy, HEAD_STRATEGIES)
        raise ValueError(f"head_strategy: unknown strategy {strategy!r}{hint}; known: {', '.join(HEAD_STRATEGIES)}")
    return _STRATEGIES[strategy](HeadView(attention, heads, normalise))


def best_heads(scores: Tensor, heads: int) -> Tensor:
    """The `heads` best of `scores` `[B, H]`, best first, the lower head on a tie: `[B, heads]`."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :heads]


def select_heads(attention: Tensor, strategy: str, heads: int, normalise: str = "resoftmax") -> Tensor:
    """The heads that guide, best first: `[B, heads]`.

    `attention` `[B, H, N]` is the last prompt token's post-softmax attention to the visual tokens. Raises
    `ValueError` for an unknown strategy or normalisation, a number of heads outside 1..H, or attention that is not
    finite.
    """
    if attention.ndim != 3:
        raise ValueError(f"attention: shape {list(attention.shape)}; expected [batch, heads, visual tokens]")
    if not 1 <= heads <= attention.shape[1]:
        raise ValueError(f"heads: got {heads}; expected 1 to {attention.shape[1]}, the query heads of the attention")
    check_choice("normalise", normalise, NORMALISATIONS)
    if not bool(torch.isfinite(attention).all()):
        raise ValueError("attention: holds NaN or infinite values")
    return best_heads(head_scores(attention, strategy, heads, normalise), heads)
