"""What is remembered of a prompt from its prefill on, for as long as its cache lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from finepruner_lmms.engine.image_drops import LayerDrop
from finepruner_lmms.engine.prompt_layout import ImageGroup, Layout

T = TypeVar("T", Layout, ImageGroup)


@dataclass
class View:
    """What the layers from one drop to the next see: the layout, and positions grown by decode."""

    layout: Layout
    positions: Tensor  # [B, L] of the current forward, or [3, B, L] where they are those of a grid
    valid: Tensor | None  # [B, L + decoded] over the whole cache; None: no padding, and so no mask is needed
    length: int  # tokens in the cache of these layers
    shift: Tensor | int = 0  # [B, 1], subtracted from the positions of decode where a stage renumbers
    kwargs: dict[str, Any] = field(default_factory=dict)  # mask, positions and rotary embeddings of the current forward

    def grow(self, positions: Tensor, new: Tensor | None) -> None:
        """One more token: `positions` `[..., B, 1]` as the model counts them, and whether it is valid, `[B, 1]`."""
        self.length += 1
        self.positions = positions - self.shift
        if self.valid is not None:
            new = self.valid.new_ones(len(self.valid), 1) if new is None else new.to(self.valid.device)
            self.valid = torch.cat([self.valid, new], dim=1)


@dataclass(frozen=True)
class LastToken:
    """The last token in a layer ahead of the one before a drop: a row of that layer's attention is made of it.

    `inside` `[B, 1, D]` is what the attention `attn` got, `rotary` the cosines and sines `[B or 1, 1, head_dim]` there.
    """

    inside: Tensor
    attn: Any
    rotary: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, inside: Tensor, attn: Any, rotary: tuple[Tensor, Tensor]) -> LastToken:
        """Of what an attention got for all tokens, `[B, L, ...]` each."""
        cos, sin = rotary
        # copies: a view would keep the hidden states of the whole prompt
        return cls(inside[:, -1:].clone(), attn, (cos[:, -1:].clone(), sin[:, -1:].clone()))

    def changed(self, change: Callable[[Tensor], Tensor]) -> LastToken:
        """The same with other rows: `change` takes `[B, ...]` to them."""
        return LastToken(change(self.inside), self.attn, (change(self.rotary[0]), change(self.rotary[1])))


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
    layers: tuple[int, ...] = ()
    """The layers before which tokens are dropped, ascending; 0 is the decoder's entrance."""
    drops: dict[int, LayerDrop] = field(default_factory=dict)
    """What happens there, where images are told apart (`Layout.groups`)."""
    positions: Tensor | None = None  # of this forward where they are those of a grid: [3, B, L]
    deep: list[Tensor] = field(default_factory=list)  # [B, L, D] each: added to the prompt's columns after a layer
    origin: Tensor | None = None  # [B, L']: the column of the prompt that each of the current ones was
    inputs: dict[int, tuple[Tensor, Any, tuple[Tensor, Tensor]]] = field(default_factory=dict)
    watched: frozenset[int] = frozenset()
    """The layers of which `asking` is kept: those whose rows are read later than at the drop behind them."""
    asking: dict[int, LastToken] = field(default_factory=dict)
    embeds: Tensor | None = None  # [B, L, D], what enters the first layer
    memory: dict[str, Any] = field(default_factory=dict)

    def end_prefill(self) -> None:
        """Forget what decode does not need."""
        self.prefill, self.embeds, self.inputs, self.memory = False, None, {}, {}
        self.deep, self.origin, self.drops, self.asking = [], None, {}, {}

    def layout_of(self, layer: int) -> Layout:
        """Where the tokens stand that layer `layer` sees."""
        assert self.layout is not None
        starts = [start for start in self.views if start <= layer]
        return self.views[max(starts)].layout if starts else self.layout


def on_device(layout: Layout, device: torch.device) -> Layout:
    """The layout with its tensors on the device of the layer that needs them."""
    if layout.valid.device == device:
        return layout
    groups = tuple(_moved(group, device) for group in layout.groups)
    return replace(_moved(layout, device), groups=groups)


def _moved(record: T, device: torch.device) -> T:
    """A dataclass with its tensors on `device`."""
    found = {f.name: getattr(record, f.name) for f in fields(record)}
    moved: dict[str, Any] = {name: value.to(device) for name, value in found.items() if isinstance(value, Tensor)}
    return replace(record, **moved)
