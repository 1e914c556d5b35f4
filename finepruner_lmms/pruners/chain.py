"""One method before the language model, another inside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import DecoderPruner, TwoStage, VisionPruner
from finepruner_lmms.pruners.budget import BudgetValue, parse_budget, plain_budget, show_tokens


@dataclass(frozen=True, kw_only=True)
class Chain(TwoStage):
    """`before` leaves `first` tokens (a count or a share) of each image, `inside` prunes on to the budget.

    The budget is that of the whole: the average over the layers of the tokens that enter them.
    """

    first: BudgetValue = None
    before: VisionPruner
    inside: DecoderPruner

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first is None and self.budget is not None:
            raise FieldError(
                "first",
                f"missing; say how many tokens {self.before.name!r} leaves for {self.inside.name!r}, such as first=288 "
                "or first='50%'",
            )
        self._write("first", plain_budget(self.first, "first"))

    @property
    def name(self) -> str:  # type: ignore[override]
        """Both names."""
        return f"{self.before.name}+{self.inside.name}"

    @property
    def halves(self) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both."""
        return self.before, self.inside

    def parts(self, num_visual_tokens: int) -> tuple[VisionPruner | None, DecoderPruner | None]:
        """Both, with their budgets."""
        total = parse_budget(self.budget).tokens(num_visual_tokens)
        if total == num_visual_tokens:
            return None, None
        before = replace(self.before, budget=self.first)
        left = before.retained(num_visual_tokens)
        if total > left:
            problem = f"leaves {left} tokens, fewer than the budget of {show_tokens(total)}"
            raise FieldError("first", problem, value=self.first, fix="raise it")
        return before, replace(self.inside, budget=total)  # exact: only the inner method's schedule rounds

    def check_heads(self, num_heads: int) -> None:
        """As both methods."""
        self.before.check_heads(num_heads)
        self.inside.check_heads(num_heads)

    def parameters(self) -> dict[str, Any]:
        """`first`, and those of both methods."""
        return {"first": self.first, **self.before.parameters(), **self.inside.parameters()}
