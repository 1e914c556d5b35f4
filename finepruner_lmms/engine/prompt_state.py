"""What is remembered of a prompt from its prefill on, for as long as its cache lives."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.prompt_layout import Layout


@dataclass
class View:
    """What the layers from one drop to the next see: the layout, and positions grown by decode."""

    layout: Layout
    positions: Tensor  # [B, L] of the current forward
    valid: Tensor | None  # [B, L + decoded] over the whole cache; None: no padding, and so no mask is needed
    length: int  # tokens in the cache of these layers
    shift: Tensor | int = 0  # [B, 1], subtracted from the positions of decode where a stage renumbers
    kwargs: dict[str, Any] = field(default_factory=dict)  # mask, positions and rotary embeddings of the current forward

    def grow(self, positions: Tensor, new: Tensor | None) -> None:
        """One more token: `positions` `[B, 1]` as the model counts them, and whether it is valid, `[B, 1]`."""
        self.length += 1
        self.positions = positions - self.shift
        if self.valid is not None:
            new = self.valid.new_ones(len(self.valid), 1) if new is None else new.to(self.valid.device)
            self.valid = torch.cat([self.valid, new], dim=1)


@dataclass
class PromptState:
    """A prompt that was read under `attach`: its layout, and a view by the layer from which on it holds.

    `layout` is None where nothing is to be pruned. The fields after `views` serve the prefill alone.
    """

    layout: Layout | None
    rows: int
    prefill: bool = True
    new_valid: Tensor | None = None  # [B, 1] of the token of this decode step
    views: dict[int, View] = field(default_factory=dict)
    inputs: dict[int, tuple[Tensor, Any, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    embeds: Tensor | None = None  # [B, L, D], what enters the first layer
    memory: dict[str, Any] = field(default_factory=dict)

    def end_prefill(self) -> None:
        """Forget what decode does not need."""
        self.prefill, self.embeds, self.inputs, self.memory = False, None, {}, {}


def on_device(layout: Layout, device: torch.device) -> Layout:
    """The layout with its tensors on the device of the layer that needs them."""
    if layout.valid.device == device:
        return layout
    moved: dict[str, Any] = {}
    for f in fields(layout):
        if isinstance(value := getattr(layout, f.name), Tensor):
            moved[f.name] = value.to(device)
    return replace(layout, **moved)
