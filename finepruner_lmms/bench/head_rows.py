"""The attention of every head in every layer but the last, read by a method that looks and drops nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from finepruner_lmms.asking.answer import answer
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.pruners.base import DecoderPruner, Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext, Selection


@dataclass(frozen=True, kw_only=True)
class Looking(DecoderPruner):
    """Stops before every layer, keeps every token, and remembers the last token's rows of the layer before."""

    name: ClassVar[str] = "looking"
    rows: dict[int, Tensor] = field(default_factory=dict, compare=False)

    def stages(self, num_layers: int, num_visual_tokens: int) -> tuple[Stage, ...]:
        """Before each layer but the first."""
        return tuple(Stage(layer, num_visual_tokens) for layer in range(1, num_layers))

    def select(self, context: DecoderContext, retained: int) -> Selection:
        """Everything."""
        self.rows[context.layer - 1] = context.attention
        return Selection(context.present)


def last_rows(model: Any, processor: Any, image: Image.Image, question: str) -> Tensor:
    """The last prompt token's attention to the image, `[L - 1, H, N]` float32 on the host.

    The model is one whose images all have N tokens (LLaVA-1.5).
    """
    looking = Looking()
    answer(model, processor, image, question, looking, max_new_tokens=1, execution="eager")
    layers = Geometry.of(model.config).num_layers
    return torch.cat([looking.rows[layer].cpu() for layer in range(layers - 1)])
