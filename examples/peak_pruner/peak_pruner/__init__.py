"""Peak: a baseline of our own, for which there is no paper."""

from dataclasses import dataclass

from finepruner_lmms.pruners import DecoderContext, Selection, register
from finepruner_lmms.pruners.fastv import FastV


@register("peak")
@dataclass(frozen=True, kw_only=True)
class Peak(FastV):
    """Keeps what any single head attends to most; layer, budget and schedule are FastV's."""

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """`context.attention` is `[B, H, V]`; keep the best `retained` of each row."""
        return self.keep_best(context.attention.amax(1), context, retained)
