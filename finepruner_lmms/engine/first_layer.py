"""Queries and keys of the language model's first layer before rotation, for methods that choose before it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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

    def asked(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """The product `[B, H, N]` of one query of each head, `[B, H, head_dim]`, with the keys of `[B, N, D]`.

        The queries go through the key projection once, instead of all tokens, where that is a matrix as it stands.
        """
        project: Any = self._layer.self_attn.k_proj
        if type(project) is not nn.Linear or project.weight.is_meta or hasattr(self._layer.self_attn, "k_norm"):
            return torch.einsum("bhd,bnhd->bhn", queries.double(), self.keys(tokens).double())
        inside = self._normalised(tokens).float()
        queries = queries.to(inside.device)
        weights = project.weight.float().unflatten(0, (-1, queries.shape[-1]))
        grouped = queries.unflatten(1, (len(weights), -1))  # the query heads of one key head are next to each other
        found = torch.einsum("bkgd,kdw->bkgw", grouped, weights).flatten(1, 2) @ inside.mT
        if project.bias is not None:
            bias = project.bias.float().unflatten(0, (-1, queries.shape[-1]))
            found = found + torch.einsum("bkgd,kd->bkg", grouped, bias).flatten(1, 2)[..., None]
        return found.to(tokens.device)

    def _normalised(self, tokens: Tensor) -> Tensor:
        """`tokens` `[..., D]` behind the input norm, on the layer's device."""
        norm = self._layer.input_layernorm
        return norm(as_weights(norm, tokens.to(device_of(self._layer, tokens.device))))

    def _heads(self, which: str, tokens: Tensor) -> Tensor:
        attn = self._layer.self_attn
        project = getattr(attn, f"{which}_proj")
        inside = self._normalised(tokens.reshape(1, -1, tokens.shape[-1]))
        heads = split_heads(project(as_weights(project, inside)), attn, f"{which}_norm").transpose(1, 2)
        return heads.reshape(*tokens.shape[:-1], *heads.shape[2:]).float().to(tokens.device)
