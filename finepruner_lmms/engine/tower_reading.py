"""What a vision tower says of its patches, read from the calls of its modules while the model encodes images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from finepruner_lmms.budget import round_half_up
from finepruner_lmms.engine.parts import as_weights, device_of
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import TowerWish

_ROWS = 1 << 25  # the most attention weights at a time, over all heads
_LAYERS = ("encoder.layers", "encoder.layer", "blocks")
_ATTENTION = ("self_attn", "attention", "attn")


@dataclass
class Call:
    """What a module was called with: its first argument and the named ones; and what it returned."""

    first: Tensor = field(default_factory=lambda: torch.empty(0))
    named: dict[str, Any] = field(default_factory=dict)
    returned: Any = None


@contextmanager
def watch(*modules: nn.Module | None) -> Iterator[list[Call]]:
    """The last call of each module while the context lasts. A module that is None is not called."""
    calls, hooks = [Call() for _ in modules], []
    for module, call in zip(modules, calls, strict=True):
        if module is None:
            continue

        def before(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], call: Call = call) -> None:
            call.first, call.named = args[0] if args else next(iter(named.values())), named

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any, call: Call = call) -> None:
            call.returned = output[0] if isinstance(output, tuple) else output

        hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def read_block(tower: Any, layer: int) -> nn.Module | None:
    """The layer of the tower that made its hidden state `layer` (negative from the last); None for the embeddings."""
    blocks = blocks_of(tower)
    count = len(blocks) + 1
    return blocks[layer % count - 1] if layer % count else None


def early_layer(wish: TowerWish, depth: int) -> int | None:
    """Which layer of a tower of `depth` layers, from 0, is the early one that is asked for; `FieldError` if none is."""
    if wish.early is None:
        return None
    if isinstance(wish.early, Fraction):
        return max(round_half_up(wish.early * depth), 1) - 1
    if not 1 <= wish.early <= depth:
        problem = f"got {wish.early}; this vision tower has layers 1 to {depth}"
        raise FieldError("tower_layer", problem, value=wish.early)
    return wish.early - 1


def blocks_of(tower: Any) -> Any:
    """The layers of a tower."""
    inner = getattr(tower, "vision_model", tower)
    return next(found for path in _LAYERS if (found := _get(inner, path)) is not None)


def attention_of(block: nn.Module | None) -> Any:
    """The attention of a layer of the tower."""
    return None if block is None else next(found for name in _ATTENTION if (found := _get(block, name)) is not None)


def heads_of(attention: Any, call: Call) -> tuple[Tensor, Tensor]:
    """Queries, scaled, and keys of a call of a layer's attention: `[T, Hc, L, C/Hc]` each, float32.

    `T` are pictures or tiles that see only themselves; a tower that joins all its patches in one row has T = 1.
    """
    inside = call.first.to(device_of(attention, call.first.device))
    inside = inside if inside.ndim == 3 else inside[None]
    if hasattr(attention, "qkv"):
        joined = attention.qkv(as_weights(attention.qkv, inside))
        query, keys, _ = joined.unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        cos, sin = (part.to(query.device).float()[None, :, None] for part in call.named["position_embeddings"])
        query, keys = (one.float() * cos + _turned(one.float()) * sin for one in (query, keys))
    else:
        query = attention.q_proj(as_weights(attention.q_proj, inside))
        keys = attention.k_proj(as_weights(attention.k_proj, inside))
        if hasattr(attention, "q_norm"):
            query, keys = attention.q_norm(query), attention.k_norm(keys)
        query, keys = (one.unflatten(-1, (attention.num_heads, -1)).float() for one in (query, keys))
    scale = attention.scale if hasattr(attention, "scale") else attention.scaling
    return query.transpose(1, 2) * scale, keys.transpose(1, 2)


def cls_attention(query: Tensor, keys: Tensor) -> Tensor:
    """What each patch gets of the attention of the CLS token, which stands first: `[T, Hc, L - 1]`."""
    return (query[:, :, :1] @ keys.transpose(2, 3)).softmax(-1)[:, :, 0, 1:]


def received_attention(query: Tensor, keys: Tensor, special: int = 0) -> Tensor:
    """What each patch gets of the attention of all patches, mean of the queries: `[T, Hc, L - special]`.

    The first `special` tokens are no patches: they take part in the softmax, and neither ask nor receive here.
    """
    tiles, heads, length, _ = keys.shape
    total = keys.new_zeros(tiles, heads, length)
    step = max(1, _ROWS // (heads * length))
    for tile in range(tiles):
        for start in range(special, length, step):
            row = query[tile, :, start : start + step] @ keys[tile].transpose(1, 2)
            total[tile] += row.softmax(-1).sum(1)
    return total[:, :, special:] / (length - special)


def received_in_parts(attention: Any, call: Call) -> Tensor:
    """`received_attention` of patches in one row that is cut into pictures: `[Hc, L]`."""
    query, keys = heads_of(attention, call)
    lengths = call.named["cu_seqlens"].diff().tolist()
    parts = zip(query.split(lengths, 2), keys.split(lengths, 2), strict=True)
    return torch.cat([received_attention(*part)[0] for part in parts], dim=-1)


def _turned(values: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _get(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module
