"""The strategies of consensus-diversity selection that differ from those of the ablation under the same name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finepruner_lmms.heads.registry import register_head_strategy
from finepruner_lmms.heads.view import HeadView, largest, min_max

if TYPE_CHECKING:
    from torch import Tensor


@register_head_strategy("consensus_sparsity")
def sparsity(view: HeadView) -> Tensor:
    """Sum of squares, and the peak."""
    return 0.7 * view.energy + 0.3 * view.peak


@register_head_strategy("consensus_hierarchical")
def hierarchical(view: HeadView) -> Tensor:
    """Sparse, of low entropy, far from uniform: one stage, unlike the ablation's two."""
    divergence = -math.log(view.deviation.shape[-1]) - view.mean_log
    return 0.4 * view.energy + 0.3 * (1 - min_max(view.entropy)) + 0.3 * divergence


@register_head_strategy("consensus_graph_based")
def graph_based(view: HeadView) -> Tensor:
    """How like the other heads it is, and how uneven."""
    if view.attention.shape[1] == 1:
        return view.mass
    centrality = (view.unit @ view.unit.sum(1)[..., None]).squeeze(-1)
    return 0.6 * centrality + 0.4 * view.raw_variance


@register_head_strategy("consensus_top_k_sum")
def top_k_sum(view: HeadView) -> Tensor:
    """The attention to a quarter of the tokens, at most 64."""
    return largest(view.attention, max(1, min(64, view.attention.shape[-1] // 4)))


@register_head_strategy("consensus_multi_objective")
def multi_objective(view: HeadView) -> Tensor:
    """Entropy, sparsity and peak, each stretched over the heads."""
    return 0.4 * min_max(view.entropy) + 0.3 * min_max(view.energy) + 0.3 * min_max(view.peak)
