"""What FastV, PDrop, SparseVLM and FinePruner share: attention rows of several heads become one score a token."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.errors import check_choice
from finepruner_lmms.ops.token_scores import AGGREGATES, ROWS, token_scores
from finepruner_lmms.pruners.base import DecoderPruner
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = ("original", "renumbered")


@dataclass(frozen=True, kw_only=True)
class AttentionGuided(DecoderPruner):
    """A decoder-side method whose guide is `head_attention`, combined by `rows` and `aggregate`.

    `rows`, `aggregate`: see `finepruner_lmms.ops.token_scores.token_scores`. `positions="original"`: survivors keep the
    positions they had; `"renumbered"`: they are numbered anew after a drop, text included; None: as published.
    """

    rows: str = "raw"
    aggregate: str = "mean"
    positions: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rows", self.rows, ROWS)
        check_choice("aggregate", self.aggregate, AGGREGATES)
        if self.positions is not None:
            check_choice("positions", self.positions, POSITIONS)

    @property
    def published_positions(self) -> str:
        """The numbering of the published code."""
        return "original"

    @property
    def renumber_positions(self) -> bool:
        """Whether tokens are numbered anew after a drop."""
        return (self.positions or self.published_positions) == "renumbered"

    @abstractmethod
    def head_attention(self, context: DecoderContext) -> Tensor:
        """The rows that guide, one per head: `[B, H, V]`."""

    def choose(self, scores: Tensor, context: DecoderContext, retained: int) -> Selection:
        """What to do with token scores `[B, V]`: keep the best."""
        return self.keep_best(scores, context, retained)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The best tokens by the combined rows of all heads."""
        return self.choose(token_scores(self.head_attention(context), self.rows, self.aggregate), context, retained)
