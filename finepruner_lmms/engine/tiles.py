"""What a tower says of pictures or tiles of one size: CLIP, SigLIP and InternViT, one row of patches each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finepruner_lmms.engine.tower_reading import (
    attention_of,
    blocks_of,
    cls_attention,
    early_layer,
    heads_of,
    read_block,
    received_attention,
    watch,
)
from finepruner_lmms.engine.vision_tower import Projector
from finepruner_lmms.ops.precision import for_choosing
from finepruner_lmms.pruners.vision_outputs import TowerWish


@dataclass(frozen=True)
class Tiles:
    """Of T tiles, each of n patches: see `VisionOutputs`; `cls` `[T, 1, C]` is the CLS token before the projector."""

    features: Tensor
    projector: Callable[[Tensor], Tensor]
    cls: Tensor | None = None
    cls_attention: Tensor | None = None
    received: Tensor | None = None
    early_received: Tensor | None = None
    early_cls: Tensor | None = None
    keys: Tensor | None = None

    def of(self, start: int, stop: int) -> Tiles:
        """Some of them."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Tiles(projector=self.projector, **{name: value[start:stop] for name, value in named.items()})


def read_tiles(
    inner: Any, tower: Any, layer: int, has_cls: bool, wish: TowerWish, run: Callable[[], Any]
) -> tuple[Any, Tiles]:
    """What `run` returns, which encodes tiles, and what the tower says of them in the layer that is projected."""
    block, projector = read_block(tower, layer), Projector(inner.multi_modal_projector)
    attention, early = attention_of(block), early_layer(wish, len(blocks_of(tower)))
    before = None if early is None else attention_of(blocks_of(tower)[early])
    with watch(inner.multi_modal_projector, attention, block, before) as (projecting, attending, leaving, earlier):
        outputs = run()
    features = projecting.first
    if attention is None:
        return outputs, Tiles(features, projector)
    with for_choosing(features.device):
        query, keys = heads_of(attention, attending)
        special = int(has_cls)
        early_heads = None if before is None else heads_of(before, earlier)
        return outputs, Tiles(
            features,
            projector,
            cls=leaving.returned[:, :1] if has_cls else None,
            cls_attention=cls_attention(query, keys) if has_cls else None,
            received=received_attention(query, keys, special) if wish.received else None,
            early_received=None if early_heads is None else received_attention(*early_heads, special),
            early_cls=cls_attention(*early_heads) if early_heads is not None and has_cls else None,
            keys=keys[:, :, special:].mean(1),
        )
