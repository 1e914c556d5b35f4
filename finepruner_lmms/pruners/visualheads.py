"""VisualHeads, ours: heads say what matters, coverage chooses; before the model and inside it, within one budget."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.errors import FieldError, check_choice, check_integer
from finepruner_lmms.heads.relevance import likeness
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.facility import cover
from finepruner_lmms.ops.selection import index_to_mask
from finepruner_lmms.pruners.base import DecoderPruner, TwoStage, VisionPruner
from finepruner_lmms.pruners.budget import BudgetValue, exactly, parse_budget, plain_budget, round_half_up, show_tokens
from finepruner_lmms.pruners.importance import IMPORTANCES
from finepruner_lmms.pruners.listening import Listening, VisualHeadsInside
from finepruner_lmms.pruners.mmtok import MMTok
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.scope import Scope
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor

BEFORE = ("mmtok", "scope", "coverage", "none")
_DROP, _STAY = Fraction(3, 8), Fraction(5, 13)
"""Of the depth, and of the tokens that enter, how many stay there: without a tail 5/8 of the budget, of 13/8."""


@register("visualheads")
@dataclass(frozen=True, kw_only=True)
class VisualHeads(Listening, TwoStage):
    """Keeps tokens that cover what some heads of a middle layer attend to, of those chosen by coverage before.

    `before` names what goes first: `mmtok`, `scope`, whose `importance` it takes, greedy coverage of the image's
    features alone (`coverage`), or `none`. `entering` of its tokens enter the model (None: about twice the budget).
    Before decoder layer `layer` (None: 3/8 of the depth, or 2 where nothing goes before) some of them go, and from
    `tail_depth` of the depth on `tail` of the others are left; with `tail=1` there is one drop. How many stay
    follows from the budget: it is the average over the layers.

    At a drop the last prompt token's attention is listened to: of all heads of the layer before alike, or of
    `score_layers` (such as `10+11`), or of the heads that `profile` names in any layer before (see `FinePruner`),
    by its weights, which `shuffle` moves to other heads as a control. `heads` limits them to the best of each
    sample by `head_strategy` (`heads.relevance.merit`). `rows="renormalised"` gives each head an equal voice,
    `contrast` takes from its row what the first word after the image attends to without having read the question,
    `measure="output"` weighs tokens by how far the head's output would move without them, and `sinks` are left,
    dropped or always kept. `aggregate` makes one relevance r of the rows.

    `choice="cover"`: each pick u adds most to Σ_j r_j^targets · max(0, r_u^candidates · s_uj - what is covered), with s
    the cosine of hidden states, less their mean over the image if `similarity="centred"`; `sum` is the worth of `tops`;
    `best` takes the most relevant, `random`, a control, any. Positions are kept.
    """

    entering: BudgetValue = None
    before: str = "mmtok"
    importance: str = "cls"
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("before", self.before, BEFORE)
        check_choice("importance", self.importance, IMPORTANCES)
        self._write("entering", plain_budget(self.entering, "entering"))
        if self.layer is not None:
            check_integer("layer", self.layer, 1)
        if self.importance != "cls" and self.before != "scope":
            raise self._unread("importance", "only before='scope' reads it")
        if self.entering is not None and self.before == "none":
            raise self._unread("entering", "with before='none' every token enters")

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both, without budgets."""
        return self._first(None), self._second(None)

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """`entering` tokens before; inside, what is left of the budget then."""
        total = parse_budget(self.budget).tokens(num_visual_tokens)
        if total == num_visual_tokens:
            return None, None
        if self.entering is None:
            first = min(round_half_up(self._usual_share * total), num_visual_tokens)
        else:
            first = round_half_up(parse_budget(self.entering).tokens(num_visual_tokens))
        if first < total:
            problem = f"lets {first} tokens in, fewer than the budget of {show_tokens(total)}"
            raise FieldError("entering", problem, value=self.entering, fix="raise it")
        before = None if first == num_visual_tokens else self._first(first)
        return before, self._second(total)

    @property
    def _usual_share(self) -> Fraction:
        """Of the budget, how many enter."""
        tail, depth = exactly(self.tail), max(exactly(self.tail_depth), _DROP)
        if tail == 1:
            depth = _DROP
        return 1 / (_DROP + _STAY * ((depth - _DROP) + (1 - depth) * tail))

    def _first(self, budget: BudgetValue) -> VisionPruner | None:
        if self.before == "none":
            return None
        if self.before == "scope":
            return Scope(budget=budget, importance=self.importance)
        return MMTok(budget=budget) if self.before == "mmtok" else Covering(budget=budget, similarity=self.similarity)

    def _second(self, budget: BudgetValue | Fraction) -> VisualHeadsInside:
        layer = 2 if self.layer is None and self.before == "none" else self.layer
        shared: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Listening)}
        return VisualHeadsInside(**shared | {"budget": budget, "layer": layer})


@dataclass(frozen=True, kw_only=True)
class Covering(VisionPruner):
    """What `VisualHeads` does before the language model: tokens that cover the image, whatever is asked."""

    name: ClassVar[str] = "visualheads"

    similarity: str = "centred"

    def choose(self, vision: VisionOutputs) -> Tensor:
        """The greedy cover of the features before the projector: `[B, N]`."""
        present = torch.ones_like(vision.features[..., 0], dtype=torch.bool)
        picks = cover(likeness(vision.features, present, self.similarity), self.retained(vision.num_visual_tokens))
        return index_to_mask(picks, vision.num_visual_tokens)
