"""FastV: An Image is Worth 1/2 Tokens After Layer 2 (Chen et al., ECCV 2024, arXiv 2403.06764, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finepruner_lmms.pruners.attention_guided import AttentionGuided
from finepruner_lmms.pruners.decoder_context import DecoderContext
from finepruner_lmms.pruners.one_drop import OneDrop
from finepruner_lmms.pruners.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastV(OneDrop, AttentionGuided):
    """Keeps the visual tokens that the last prompt token attends to most, averaged over the heads of one layer.

    The tokens are dropped once, before decoder layer `layer` (the paper's K), by the attention of the layer before
    it; survivors keep their positions. This is the static variant of the released code, which prunes in prefill
    only.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.06764"
    code: ClassVar[str] = "https://github.com/pkunlp-icler/FastV"

    layer: int = 2

    def head_attention(self, context: DecoderContext) -> Tensor:
        """The last prompt token's rows in the layer before."""
        return context.attention
