"""The presets of consensus-diversity selection: strategies, thresholds, and what `calibrated` rescales."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What tells two versions of the algorithm apart."""

    strategies: tuple[str, ...]
    base: float
    agreed: tuple[float, float]  # above a consistency of 0.6: slope and cap
    split: tuple[float, float]  # below 0.2: slope and floor
    otherwise: float  # share of `base` in between
    scales: Scales | None = None  # of `calibrated`


@dataclass(frozen=True)
class Scales:
    """What `calibrated` changes, so that every branch is reached by real attention.

    The ranges are quantiles of the quantity over the demo model's layer 1 on the tuning split; what lies in such a
    range is stretched to where the original has its thresholds.
    """

    quality: tuple[float, float]  # a third of the strategies below, a third above: they choose many, few heads
    agreement: tuple[float, float]  # 20 % and 80 %, stretched to 0.2 and 0.6
    complexity: tuple[float, float]  # 20 % and 80 %, stretched to 0.3 and 0.7
    quota: float = 0.25  # share of the heads reserved for diversity
    temperature: float = 0.1  # of the fusion weights


_ALL = (
    "sum",
    "sparsity",
    "hierarchical",
    "graph_based",
    "top_k_sum",
    "max_attention",
    "attention_range",
    "multi_objective",
)
PRESETS = {
    "doc": Preset(_ALL, 1 / 3, (1.0, 0.5), (2.0, 0.15), 1.0),
    "latest": Preset(("sparsity", "hierarchical", "attention_range"), 1 / 4, (0.8, 0.4), (1.5, 0.1), 0.9),
    "calibrated": Preset(_ALL, 1 / 3, (1.0, 0.5), (2.0, 0.15), 1.0, Scales((0.53, 0.63), (0.31, 0.44), (0.59, 0.67))),
}
