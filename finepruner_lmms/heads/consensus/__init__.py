"""Intelligent Consensus-Diversity selection of heads, in five steps (after the LLaVA-FinePruner-Head code base).

1. Every strategy scores the heads, chooses some, and gets a *quality*.
2. The strategies *vote* for the heads they chose, weighted by quality; a *threshold* follows from how much they agree.
3. The largest gap between votes, and the *complexity* of the attention, give the number of heads.
4. Heads above the threshold are the *consensus*; *diversity* fills what is missing with heads unlike them.
5. The chosen heads' rows are *fused* with weights.

Presets differ in strategies and thresholds (`PRESETS`). Everything is computed for a batch at a time, in a number of
operations that depends neither on the batch nor on the heads; what concerns a head as a whole is float64. The formulas
of the strategies are not those of `heads`, though some names are the same.
"""

from __future__ import annotations

from finepruner_lmms.heads.consensus.presets import PRESETS, Preset, Scales
from finepruner_lmms.heads.consensus.selection import Consensus, ConsensusSelection, select, select_batch
from finepruner_lmms.heads.consensus.steps import STRATEGIES, adaptive_count, add_diversity, dynamic_threshold, fuse

__all__ = [
    "PRESETS",
    "STRATEGIES",
    "Consensus",
    "ConsensusSelection",
    "Preset",
    "Scales",
    "adaptive_count",
    "add_diversity",
    "dynamic_threshold",
    "fuse",
    "select",
    "select_batch",
]
