"""FinePruner: only the heads that look at the image guide the pruning (after the LLaVA-FinePruner-Head code base)."""

from __future__ import annotations

from dataclasses import dataclass

from finepruner_lmms import heads as head_selection
from finepruner_lmms.pruners.base import DecoderContext, Selection, check_choice, check_integer, register
from finepruner_lmms.pruners.fastv import FastV
from finepruner_lmms.scores import token_scores

QUERIES = ("last",)
NORMALISATIONS = ("resoftmax",)


@register("finepruner", "fastv+finepruner")
@dataclass(frozen=True, kw_only=True)
class FinePruner(FastV):
    """FastV scored by the `heads` best heads of each sample, ranked by `head_strategy`.

    All heads still take part in the layer's own attention; with all of them as guides this is FastV exactly.
    `heads=None` is 16, or half of the heads of a model with fewer than 32.
    """

    heads: int | None = None
    head_strategy: str = "sum"
    query: str = "last"
    normalise: str = "resoftmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            check_integer("heads", self.heads, 1)
        check_choice("head_strategy", self.head_strategy, head_selection.HEAD_STRATEGIES)
        check_choice("query", self.query, QUERIES)
        check_choice("normalise", self.normalise, NORMALISATIONS)

    def check_heads(self, num_heads: int) -> None:
        """`heads` may be at most the query heads of the model."""
        if self.heads is not None and self.heads > num_heads:
            raise ValueError(f"heads: got {self.heads}; the layers of this model have {num_heads} query heads")

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Rank the heads, then keep the best tokens by the combined row of the chosen ones."""
        attention = context.attention
        count = min(16, max(1, attention.shape[1] // 2)) if self.heads is None else self.heads
        scores = head_selection.head_scores(attention, self.head_strategy)
        chosen = head_selection.best_heads(scores, count)
        # ascending, so that choosing every head adds them up in the same order as FastV does
        index = chosen.sort(dim=1).values[..., None].expand(-1, -1, attention.shape[2])
        tokens = token_scores(attention.gather(1, index), self.rows, self.aggregate)
        return self.keep_best(tokens, context, retained, heads=chosen, head_scores=scores)
