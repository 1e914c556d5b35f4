"""Queries and keys of the language model's first layer before rotation, for methods that choose before it runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from finepruner_lmms.engine.attention_rows import check_layers, heads_per_key, split_heads
from finepruner_lmms.engine.parts import as_weights, device_of


class FirstLayer:
    """`pruners.vision_outputs.FirstLayer` of a decoder: its input norm and its projections, norms per head included.

    `FieldError` for a layer that computes attention in another way.
    """

    def __init__(self, decoder: Any) -> None:
        self._layer: Any = decoder.layers[0]
        check_layers([self._layer])

    def queries(self, tokens: Tensor) -> Tensor:
        """Of tokens `[..., D]`: `[..., H, head_dim]` in float32."""
        return self._heads("q", tokens)

    def keys(self, tokens: Tensor) -> Tensor:
        """Of tokens `[..., D]`, repeated for each query head: `[..., H, head_dim]` in float32."""
        keys = self._heads("k", tokens)
        groups = heads_per_key(self._layer.self_attn)
        return keys[..., None, :].expand(*keys.shape[:-1], groups, -1).flatten(-3, -2)

    def _heads(self, which: str, tokens: Tensor) -> Tensor:
        layer, attn = self._layer, self._layer.self_attn
        project = getattr(attn, f"{which}_proj")
        rows = tokens.reshape(1, -1, tokens.shape[-1]).to(device_of(layer, tokens.device))
        inside = layer.input_layernorm(as_weights(layer.input_layernorm, rows))
        heads = split_heads(project(as_weights(project, inside)), attn, f"{which}_norm").transpose(1, 2)
        return heads.reshape(*tokens.shape[:-1], *heads.shape[2:]).float().to(tokens.device)
