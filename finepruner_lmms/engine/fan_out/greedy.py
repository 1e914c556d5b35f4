"""Which calls of `generate` are plain greedy decoding, so that rows of several methods can be decoded as one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.fixed.support import why_not
from finepruner_lmms.engine.generation_modes import setting


def why_apart(model: LlavaForConditionalGeneration, generation: Mapping[str, Any]) -> str | None:
    """Why methods cannot answer together under these arguments of `generate`; None where they can."""
    if setting(model, generation, "output_logits"):
        return "the logits of several methods are not kept"
    return why_not(model, generation, 0)
