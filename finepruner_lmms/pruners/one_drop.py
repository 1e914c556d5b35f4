"""One drop inside the language model, and how many tokens it leaves so that the layers see the budget on average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from finepruner_lmms.errors import FieldError, check_integer
from finepruner_lmms.pruners.base import DecoderPruner, Stage
from finepruner_lmms.pruners.budget import round_half_up


@dataclass(frozen=True, kw_only=True)
class OneDrop(DecoderPruner):
    """A decoder-side method that drops tokens once, before decoder layer `layer`.

    Where a method has a `usual_depth`, a share of the layers, `layer=None` stands for it.
    """

    usual_depth: ClassVar[Fraction | None] = None

    layer: int | None = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None or self.usual_depth is None:
            check_integer("layer", self.layer, 1)

    def drop_layer(self, num_layers: int) -> int:
        """K, the layer before which tokens are dropped."""
        if self.layer is None:
            assert self.usual_depth is not None
            return max(1, math.floor(num_layers * self.usual_depth))
        if self.layer >= num_layers:
            problem = f"got {self.layer}; this model has {num_layers} layers, so 1 to {num_layers - 1}"
            raise FieldError("layer", problem, value=self.layer)
        return self.layer

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """One drop to R = (L·B - K·N) / (L - K), so that the layers see B on average."""
        layer = self.drop_layer(num_layers)
        full, rest = layer * num_visual_tokens, num_layers - layer
        tokens = self._tokens(num_visual_tokens, least=Fraction(full, num_layers))
        retained = round_half_up((num_layers * tokens - full) / rest)
        return () if retained == num_visual_tokens else (Stage(layer, retained),)
