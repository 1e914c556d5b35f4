"""Which attention heads guide the pruning: head strategies, and the selection of the best-scored heads.

The strategies are those of the ablation registry of the LLaVA-FinePruner-Head code base. It takes a softmax of the
attention, which is a softmax already: `normalise="resoftmax"`. The result is nearly uniform, and several strategies
rank heads by differences below half precision, some below float32; here everything is computed in float64.
`normalise="renormalise"` divides by the head's attention to the image instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from finepruner_lmms.checks import check_choice, nearest

EPS = 1e-8
NORMALISATIONS = ("resoftmax", "renormalise")


class HeadView:
    """What a head strategy looks at: the attention of B samples and H heads to N visual tokens, in float64.

    `attention` `[B, H, N]`; `heads`, how many are to be chosen; and, computed when first read, `p` `[B, H, N]`, the
    attention normalised over the tokens.
    """

    def __init__(self, attention: Tensor, heads: int, normalise: str = "resoftmax") -> None:
        self.attention, self.heads, self.normalise = attention.double(), heads, normalise

    @cached_property
    def p(self) -> Tensor:
        """`[B, H, N]`, each row sums to 1."""
        if self.normalise == "resoftmax":
            return self.attention.softmax(-1)
        return self.attention / self.attention.sum(-1, keepdim=True).clamp_min(1e-30)

    @cached_property
    def entropy(self) -> Tensor:
        """`[B, H]`, of `p`."""
        return -torch.linalg.vecdot(self.p, (self.p + EPS).log())

    @cached_property
    def energy(self) -> Tensor:
        """`[B, H]`: the sum of squares of `p`."""
        return torch.linalg.vecdot(self.p, self.p)

    @cached_property
    def peak(self) -> Tensor:
        """`[B, H]`: the maximum of `p`."""
        return self.p.amax(-1)

    @cached_property
    def variance(self) -> Tensor:
        """`[B, H]`: of `p`, unbiased."""
        return self.p.var(-1)

    def only(self, index: Tensor) -> HeadView:
        """The view of the heads `[B, K]`."""
        rows = index[..., None].expand(-1, -1, self.attention.shape[-1])
        return HeadView(self.attention.gather(1, rows), self.heads, self.normalise)


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
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@register_head_strategy("sum")
def visual_mass(view: HeadView) -> Tensor:
    """How much of its attention a head spends on the image."""
    return view.attention.sum(-1)


@register_head_strategy("variance")
def variance(view: HeadView) -> Tensor:
    """How unevenly the attention is spread, scaled by how much there is."""
    return view.attention.var(-1)


@register_head_strategy("entropy")
def low_entropy(view: HeadView) -> Tensor:
    """The lowest entropy first."""
    return -view.entropy


@register_head_strategy("max_attention")
def max_attention(view: HeadView) -> Tensor:
    """The attention to the best token."""
    return view.attention.amax(-1)


@register_head_strategy("attention_range")
def attention_range(view: HeadView) -> Tensor:
    """Between the best and the worst token."""
    low, high = view.attention.aminmax(dim=-1)
    return high - low


@register_head_strategy("sparsity")
def sparsity(view: HeadView) -> Tensor:
    """The sum of squares: 1 for a head that looks at one token, 1/N for one that looks everywhere."""
    return view.energy


@register_head_strategy("top_k_sum")
def top_k_sum(view: HeadView) -> Tensor:
    """The attention to the ten best tokens."""
    return view.attention.topk(min(10, view.attention.shape[-1])).values.sum(-1)


@register_head_strategy("weighted_quality")
def weighted_quality(view: HeadView) -> Tensor:
    """Peak, sparsity and few tokens above 1 %. With `resoftmax` no token ever is, and the choice is a tie-break."""
    coverage = (view.p > 0.01).sum(-1)
    return 0.4 * view.peak + 0.4 * view.energy + 0.2 / (coverage + EPS)


@register_head_strategy("gini_coefficient")
def gini_coefficient(view: HeadView) -> Tensor:
    """The Gini coefficient of the distribution over tokens."""
    size = view.p.shape[-1]
    weight = 2 * torch.arange(1, size + 1, dtype=view.p.dtype, device=view.p.device) - size - 1
    return view.p.sort(dim=-1).values @ weight / (size * view.p.sum(-1))


@register_head_strategy("multi_objective")
def multi_objective(view: HeadView) -> Tensor:
    """Information, diversity and sparsity together; it wants high entropy and high sparsity at once."""
    centred = (view.p - view.p.mean(-1, keepdim=True)).square()
    kurtosis = centred.square().mean(-1) / (centred.mean(-1).square() + EPS)
    information = 0.7 * min_max(view.entropy) + 0.3 * min_max(kurtosis)
    unit = unit_rows(view.p)
    similarity = torch.linalg.vecdot(unit, unit.sum(1, keepdim=True)) - 1
    diversity = 1 / (similarity / max(view.p.shape[1] - 1, 1) + EPS)
    return 0.4 * information + 0.3 * min_max(diversity) + 0.3 * min_max(view.energy)


@register_head_strategy("graph_based")
def graph_based(view: HeadView) -> Tensor:
    """Two rounds of message passing between heads of similar attention, over five features. Entropy dominates them."""
    above = (view.p > view.p.mean(-1, keepdim=True)).to(view.p.dtype).mean(-1)
    features = torch.stack([view.energy, view.entropy, view.peak, view.variance, above], dim=-1)
    unit = unit_rows(view.p)
    near = (unit @ unit.transpose(1, 2) > 0.1).to(view.p.dtype)
    near = near - near.diagonal(dim1=1, dim2=2).diag_embed()
    near = near / (near.sum(-1, keepdim=True) + EPS)
    for _ in range(2):
        features = (features + near @ features).relu()
    return features.mean(-1)


@register_head_strategy("hierarchical")
def hierarchical(view: HeadView) -> Tensor:
    """First the twice as many sparse heads, then the best of them by entropy, divergence, distance and stability."""
    heads = view.p.shape[1]
    if heads <= max(view.heads, 8):
        return 0.5 * view.energy + 0.3 * view.peak + 0.2 * view.variance
    coarse = 0.6 * view.energy + 0.4 * (1 - min_max(view.entropy, 0))
    kept = best_heads(coarse, min(heads, max(2 * view.heads, view.heads + 4)))
    fine = view.only(kept)
    uniform = 1 / fine.p.shape[-1]
    divergence = torch.linalg.vecdot(fine.p, (fine.p / (uniform + EPS) + EPS).log())
    unit = unit_rows(fine.p)
    distance = (unit - unit.mean(1, keepdim=True)).norm(dim=-1)
    stability = 1 / (fine.p.std(-1) + EPS)
    metrics = zip((0.3, 0.25, 0.25, 0.2), (fine.entropy, divergence, distance, stability), strict=True)
    scores = torch.stack([weight * min_max(metric, 0) for weight, metric in metrics]).sum(0)
    # ties among the kept go to the better of the first stage
    return torch.full_like(coarse, -math.inf).scatter(1, kept, scores)


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
