"""FastV: An Image is Worth 1/2 Tokens After Layer 2 (Chen et al., ECCV 2024, arXiv 2403.06764, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.errors import FieldError, check_integer
from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.base import Stage
from finepruner_lmms.pruners.budget import round_half_up
from finepruner_lmms.pruners.decoder_context import DecoderContext
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(AttentionGuided):
    """Keeps the visual tokens that the last prompt token attends to most, averaged over the heads of one layer.

    The tokens are dropped once, before decoder layer `layer` (the paper's K), by the attention of the layer before
    it; survivors keep their positions. This is the static variant of the released code, which prunes in prefill
    only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.06764"
    code: ClassVar[str] = "https://github.com/pkunlp-icler/FastV"

    layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("layer", self.layer, 1)

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """One drop to R = (L·B - K·N) / (L - K), so that the layers see B on average."""
        if self.layer >= num_layers:
            problem = f"got {self.layer}; this model has {num_layers} layers, so 1 to {num_layers - 1}"
            raise FieldError("layer", problem, value=self.layer)
        full, rest = self.layer * num_visual_tokens, num_layers - self.layer
        tokens = self._tokens(num_visual_tokens, least=Fraction(full, num_layers))
        retained = round_half_up((num_layers * tokens - full) / rest)
        return () if retained == num_visual_tokens else (Stage(self.layer, retained),)

    def head_attention(self, context: DecoderContext) -> Tensor:
        """The last prompt token's rows in the layer before."""
        return context.attention
