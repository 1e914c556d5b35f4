"""PriorTR: tokens that the question attends to more than a row that has not read it (ECCV 2026, arXiv 2606.24156)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import check_choice
from finepruner_lmms.heads.queries import QUERIES, Words, query_weights
from finepruner_lmms.lazy import torch
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.one_drop import OneDrop
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor

AGGREGATES = ("mean", "max")
_EPS = 1e-10


@register("priortr")
@dataclass(frozen=True, kw_only=True)
class PriorTR(OneDrop):
    """Keeps the tokens by which the question's attention differs from a prior that does not know the question.

    Before decoder layer `layer`, Q is the attention of the first word after the image, which sees the image but no
    question, and P that of the words which `query` names (`heads.queries`; all of the text as published for LLaVA-1.5,
    `"last"` as for LLaVA-1.6). Both are combined over the heads by `aggregate`, made to sum to 1 over the image, and a
    token's score is its term P·log(P/Q) of their divergence. Positions are kept. Where no text follows the image there
    is no prior, and P alone decides.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2606.24156"

    layer: int = 3
    query: str = "text_tokens_only"
    aggregate: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        QUERIES.check(self.query)
        check_choice("aggregate", self.aggregate, AGGREGATES)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The best tokens by their term of the divergence."""
        last = self._over_image(context.attention)
        if not context.text_present.shape[1]:
            return self.keep_best(last, context, retained)
        prior, asked = self._rows(context)
        asked = last if self.query == "last" else asked
        has_text = context.text_present.any(1, keepdim=True)
        scores = torch.where(has_text, divergence(asked, prior), last)
        return self.keep_best(scores, context, retained)

    def _rows(self, context: DecoderContext) -> tuple[Tensor, Tensor]:
        """Q and P, each `[B, V]`, from one pass over the text's rows."""
        present = context.text_present
        first = (present & (present.long().cumsum(1) == 1)).float()
        weights = [first]
        if self.query != "last":
            words = Words(present, context.prefix_lengths, context.text_mass)
            weights.append(query_weights(self.query, words).to(first.dtype))
        which = torch.stack(weights, dim=1)
        found = [
            torch.einsum("bhtv,bqt->bqhv", rows, which[:, :, part].to(rows.dtype))
            for part, rows in context.text_slices()
        ]
        rows = torch.stack(found).sum(0) if len(found) > 1 else found[0]
        return self._over_image(rows[:, 0]), self._over_image(rows[:, -1])

    def _over_image(self, rows: Tensor) -> Tensor:
        """Rows of all heads `[B, H, V]` as one that sums to 1 over the image, `[B, V]`, in float64."""
        rows = rows.double()
        one = rows.amax(1) if self.aggregate == "max" else rows.mean(1)
        return one / one.sum(-1, keepdim=True).clamp_min(1e-30)


def divergence(asked: Tensor, prior: Tensor) -> Tensor:
    """The terms P·log(P/Q) of the divergence of `asked` P from `prior` Q, both `[B, V]`."""
    return asked * ((asked + _EPS) / (prior + _EPS)).log()
