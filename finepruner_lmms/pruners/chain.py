"""One method before the language model, another inside it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import DecoderPruner, VisionPruner
from finepruner_lmms.pruners.budget import BudgetValue, plain_budget
from finepruner_lmms.pruners.two_stage import TwoStage


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

    def first_budget(self, total: Fraction) -> BudgetValue:
        """As given."""
        return self.first

    def parameters(self) -> dict[str, Any]:
        """`first`, and those of both methods."""
        return {"first": self.first, **self.before.parameters(), **self.inside.parameters()}
