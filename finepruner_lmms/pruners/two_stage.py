"""Two stages under one budget: tokens are dropped before the language model, and more of them inside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Side, Stage, VisionPruner
from finepruner_lmms.pruners.budget import BudgetValue, parse_budget, show_tokens


@dataclass(frozen=True, kw_only=True)
class TwoStage(Pruner):
    """`before` leaves `first_budget` tokens of each image, `inside` prunes on to the budget, that of the whole.

    Both are pruners without a budget of their own: they get theirs here.
    """

    side: ClassVar[Side] = "both"

    if TYPE_CHECKING:  # properties of a method, fields of a composition

        @property
        def before(self) -> VisionPruner:
            """What chooses before the language model."""

        @property
        def inside(self) -> DecoderPruner:
            """What chooses inside it, among what is left."""

    def first_budget(self, total: Fraction) -> BudgetValue:
        """How many tokens `before` leaves, where the layers are to see `total` on average."""
        raise NotImplementedError

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both, with their budgets."""
        total = parse_budget(self.budget).tokens(num_visual_tokens)
        if total == num_visual_tokens:
            return None, None
        before = replace(self.before, budget=self.first_budget(total))
        left = before.retained(num_visual_tokens)
        if total > left:
            problem = f"leaves {left} tokens, fewer than the budget of {show_tokens(total)}"
            raise FieldError("first", problem, value=before.budget, fix="raise it")
        return before, replace(self.inside, budget=total)  # exact: only the inner method's schedule rounds

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """The drop before the model, then those inside, of what is left."""
        before, inside = self.parts(num_visual_tokens)
        if before is None or inside is None:
            return ()
        drop = before.stages(num_layers, num_visual_tokens)
        return (*drop, *inside.stages(num_layers, before.retained(num_visual_tokens)))

    def check_heads(self, num_heads: int) -> None:
        """As the inner method."""
        self.inside.check_heads(num_heads)
