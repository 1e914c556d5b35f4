"""No image at all: what a model answers from the question alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError
from finepruner_lmms.lazy import torch
from finepruner_lmms.pruners.base import Stage, VisionPruner
from finepruner_lmms.pruners.budget import BudgetValue
from finepruner_lmms.pruners.registry import register
from finepruner_lmms.pruners.vision_outputs import TowerWish, VisionOutputs

if TYPE_CHECKING:
    from torch import Tensor


@register("blind")
@dataclass(frozen=True, kw_only=True)
class Blind(VisionPruner):
    """Drops every visual token: the score that the questions give away by themselves.

    It takes no budget, since no decoder layer sees a visual token: its budget is 0.
    """

    budget: BudgetValue = 0

    def _plain_budget(self) -> BudgetValue:
        if self.budget is None or str(self.budget).strip() == "0":
            return 0
        problem = f"got {self.budget!r}, but blind shows the model no visual token, whatever the budget"
        raise FieldError("budget", problem, value=self.budget, fix="leave it out")

    @property
    def wish(self) -> TowerWish:
        """The tower need not run."""
        return TowerWish(unread=True)

    def retained(self, num_visual_tokens: int) -> int:
        """None."""
        return 0

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """One drop, of all."""
        return (Stage(0, 0),)

    def choose(self, vision: VisionOutputs) -> Tensor:
        """None is kept: `[B, N]` False."""
        return torch.zeros(vision.features.shape[:2], dtype=torch.bool, device=vision.features.device)
