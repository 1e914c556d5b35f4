"""FastV: An Image is Worth 1/2 Tokens After Layer 2 (Chen et al., ECCV 2024, arXiv 2403.06764, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from finepruner_lmms.budget import round_half_up
from finepruner_lmms.pruners.base import (
    DecoderContext,
    DecoderPruner,
    Selection,
    Stage,
    check_choice,
    check_integer,
    register,
)
from finepruner_lmms.scores import AGGREGATES, ROWS, token_scores


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(DecoderPruner):
    """Keeps the visual tokens that the last prompt token attends to most, averaged over the heads of one layer.

    The tokens are dropped once, before decoder layer `layer` (the paper's K), by the attention of the layer before
    it; survivors keep their positions. This is the static variant of the released code, which prunes in prefill
    only. `rows` and `aggregate`: see `finepruner_lmms.scores.token_scores`.
    """

    layer: int = 2
    rows: str = "raw"
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("layer", self.layer, 1)
        check_choice("rows", self.rows, ROWS)
        check_choice("aggregate", self.aggregate, AGGREGATES)

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """One drop to R = (L·B - K·N) / (L - K), so that the layers see B on average."""
        if self.layer >= num_layers:
            raise ValueError(f"layer: got {self.layer}; this model has {num_layers} layers, so 1 to {num_layers - 1}")
        full, rest = self.layer * num_visual_tokens, num_layers - self.layer
        tokens = self._tokens(num_visual_tokens, least=Fraction(full, num_layers))
        retained = round_half_up((num_layers * tokens - full) / rest)
        return () if retained == num_visual_tokens else (Stage(self.layer, retained),)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The best tokens by the combined row of all heads."""
        return self.keep_best(token_scores(context.attention, self.rows, self.aggregate), context, retained)
