"""TOPS: First-Principles Visual Token Pruning via Constructing Token Optimal Preservation Sets (2606.27161)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_choice, check_number
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.facility import Score, cosines, cover
from finepruner_lmms.ops.selection import at_least_float32, index_to_mask, with_required
from finepruner_lmms.pruners.base import DecoderPruner, Stage, TwoStage, VisionPruner
from finepruner_lmms.pruners.budget import round_half_up
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection
from finepruner_lmms.pruners.importance import IMPORTANCES, ByImportance
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.two_drops import two_drops
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

_FIRST, _SECOND = Fraction(3, 8), Fraction(3, 4)  # of the depth: layers 12 and 24 of 32, 15 and 30 of 40
_LAST = Fraction(1, 4)  # of T tokens, after the second drop inside; 2 T enter the first layer
_BEFORE = 0.5  # the weight of coverage before the model


@register("tops")
@dataclass(frozen=True, kw_only=True)
class Tops(TwoStage):
    """Keeps tokens that are relevant, cover the rest and differ, chosen before the model and at two depths inside it.

    Each pick has the largest sum of its relevance, `alpha` times how unlike it is to the picks, and a weight times what
    it adds to the coverage of the rest, each divided by its mean over the tokens left. Relevance is the CLS token's
    attention to projected tokens, and inside the attention of the words after the image to hidden states. 2 T tokens
    enter the model, T from 3/8 of its depth on and T/4 from 3/4; T follows from the budget. `coverage` is the weight
    inside; before it is 0.5. `importance`: see `ByImportance`. Positions are numbered anew.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2606.27161"

    alpha: float = 0.5
    coverage: float = 1.0
    importance: str = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "coverage"):
            check_number(name, getattr(self, name), 0)
            self._write(name, float(getattr(self, name)))
        check_choice("importance", self.importance, IMPORTANCES)

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both, without budgets."""
        return TopsBefore(importance=self.importance, alpha=self.alpha), TopsInside(
            alpha=self.alpha, coverage=self.coverage
        )

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """2 T before, T so that the whole depth averages to the budget; what is left to do inside knows the budget."""
        total = self._tokens(num_visual_tokens, least=Fraction(1))
        if total == num_visual_tokens:
            return None, None
        entering = 2 * total / (2 * _FIRST + (_SECOND - _FIRST) + (1 - _SECOND) * _LAST)
        first = min(round_half_up(entering), num_visual_tokens) if total > 1 else 1
        inside = TopsInside(budget=total, alpha=self.alpha, coverage=self.coverage)
        if first == num_visual_tokens:
            return None, inside
        return TopsBefore(budget=first, importance=self.importance, alpha=self.alpha), inside


@dataclass(frozen=True, kw_only=True)
class TopsBefore(ByImportance):
    """What `Tops` does before the language model."""

    name: ClassVar[str] = "tops"

    alpha: float = 0.5

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The greedy choice among projected tokens: `[B, N]`."""
        relevance, similarity = self.by_head(vision).mean(1), cosines(vision.projected)
        picks = cover(
            similarity,
            self.retained(vision.num_visual_tokens),
            first=relevance.argmax(1, keepdim=True),
            score=preserving(relevance, self.alpha, _BEFORE),
        )
        return index_to_mask(picks, vision.num_visual_tokens)


@dataclass(frozen=True, kw_only=True)
class TopsInside(DecoderPruner):
    """What `Tops` does inside the language model; its budget is that of the whole."""

    name: ClassVar[str] = "tops"

    alpha: float = 0.5
    coverage: float = 1.0

    @property
    def renumber_positions(self) -> bool:
        """As published."""
        return True

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The two drops that bring the average of all layers nearest to the budget, of what enters the first one."""
        first, second = (round_half_up(share * num_layers) for share in (_FIRST, _SECOND))
        if second >= num_layers:
            raise FieldError("method", f"tops needs a decoder of 3 layers or more; this model has {num_layers}")
        least = Fraction(first * num_visual_tokens + num_layers - first, num_layers)
        tokens = self._tokens(num_visual_tokens, least)
        if tokens == num_visual_tokens:
            return ()
        return two_drops((first, second, num_layers), num_visual_tokens, Fraction(tokens), _LAST)

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """The greedy choice among hidden states."""
        relevance = self._relevance(context).masked_fill(~context.present, 0)
        picks = cover(
            cosines(context.hidden),
            retained,
            targets=context.present,
            present=context.present,
            first=relevance.masked_fill(~context.present, -1).argmax(1, keepdim=True),
            score=preserving(relevance, self.alpha, self.coverage),
        )
        keep = index_to_mask(picks, context.present.shape[1]) & context.present
        # the earlier, the better: so the token that a prompt's end requires takes the last pick's place
        turn = torch.arange(retained, 0, -1, dtype=relevance.dtype, device=picks.device).expand_as(picks)
        order = torch.zeros_like(relevance).scatter_reduce_(1, picks, turn, "amax")
        return Selection(
            keep if context.required is None else with_required(keep, context.required, retained, order), relevance
        )

    def _relevance(self, context: DecoderContext) -> Tensor:
        """The mean attention of the words after the image, `[B, V]`; that of the prompt's last where there are none."""
        words = context.text_present
        if not words.shape[1]:
            return at_least_float32(context.attention).mean(1)
        place = torch.arange(words.shape[1], device=words.device)
        raters = torch.where(words.any(1, keepdim=True), words, place == words.shape[1] - 1)
        weights = raters / raters.sum(1, keepdim=True)
        return at_least_float32(context.weighted_text(weights)).mean(1)


def preserving(relevance: Tensor, diversity: float, coverage: float) -> Score:
    """The worth of a pick by `relevance` `[B, N]`, how unlike it is to the picks, and what it adds to coverage."""

    def score(gains: Tensor, covered: Tensor, left: Tensor) -> Tensor:
        unlike = (1 - covered).clamp_min(0)
        return sum_of_shares(left, (1.0, relevance), (diversity, unlike), (coverage, gains))

    return score


def sum_of_shares(left: Tensor, *parts: tuple[float, Tensor]) -> Tensor:
    """Weighted parts `[B, N]`, each divided by its mean over the tokens that are `left` `[B, N]`; float64."""
    total = torch.zeros_like(left, dtype=torch.float64)
    count = left.sum(1, keepdim=True).clamp_min(1)
    for weight, part in parts:
        mean = (part.double() * left).sum(1, keepdim=True) / count
        total = total + weight * (part.double() / mean.masked_fill(mean == 0, 1))
    return total
