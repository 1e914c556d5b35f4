"""The unpruned model: the reference that every relative figure is divided by."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from finepruner_lmms.pruners.base import Pruner, Side, Stage
from finepruner_lmms.pruners.registry import register


@register("vanilla")
@dataclass(frozen=True, kw_only=True)
class Vanilla(Pruner):
    """Keeps every visual token; the model runs untouched."""

    side: ClassVar[Side] = "none"

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """None; a budget other than N is out of reach."""
        self._tokens(num_visual_tokens, least=Fraction(num_visual_tokens))
        return ()
