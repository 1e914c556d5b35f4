"""The one file that knows transformers' LLaVA: encoding images, and dropping tokens before a decoder layer.

A `LlavaForConditionalGeneration` stays as it is. `attach` registers forward pre-hooks, which transformers calls with
the arguments of each layer, and removes them again:

- on the LLaVA model: reads the prompt of a prefill (where the visual tokens stand, which columns are padding);
- on the attention of the layer before a drop: keeps a reference to the last token's input, from which the attention
  row is recomputed in float32 with the layer's own query projection and cached keys. No attention map is ever built,
  so SDPA or flash attention stays on in every layer;
- on every decoder layer from the first drop on: at a drop, gathers the kept tokens; in prefill and decode, swaps in
  the mask, positions and rotary embeddings of the short sequence. `LlamaModel.forward` computes these once for all
  layers, from layer 0, which still holds the long sequence.

The caches of the layers need no care: each layer caches what it is given.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finepruner_lmms.layout import Layout, drop_visual, read_layout
from finepruner_lmms.pruners.base import DecoderContext, DecoderPruner, Pruner
from finepruner_lmms.selection import fingerprint
from finepruner_lmms.trace import Trace
from finepruner_lmms.vision import VisionOutputs

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model that a schedule depends on."""

    num_layers: int
    num_heads: int
    num_visual_tokens: int
    image_token_id: int

    @classmethod
    def of(cls, config: Any) -> Geometry:
        """Read from a `LlavaConfig`; no weights are needed."""
        vision, text = config.vision_config, config.text_config
        patches = (vision.image_size // vision.patch_size) ** 2
        with_cls = config.vision_feature_select_strategy == "full"
        return cls(text.num_hidden_layers, text.num_attention_heads, patches + with_cls, config.image_token_id)


@torch.no_grad()
def encode_images(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> VisionOutputs:
    """Run the vision tower and the projector on `pixel_values` `[B, 3, S, S]`, one image a row."""
    check_model(model)
    outputs = model.get_image_features(pixel_values.to(model.device, model.dtype), return_dict=True)
    config = model.config
    if not isinstance(config.vision_feature_layer, int):
        raise ValueError(
            f"vision_feature_layer: {config.vision_feature_layer} joins several layers; only a single one is supported"
        )
    features = outputs.hidden_states[config.vision_feature_layer]
    if config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    return VisionOutputs(features, torch.stack(list(outputs.pooler_output)), sample_keys=fingerprint(pixel_values))


def encoder_outputs(projected: Tensor) -> dict[str, Any]:
    """Visual tokens `[B, R, D]` in the form in which `generate` accepts images that are encoded already."""
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(projected))}}


def check_model(model: Any) -> None:
    """Raise `TypeError` unless `model` is a transformers LLaVA with a Llama decoder."""
    if not isinstance(model, LlavaForConditionalGeneration):
        raise TypeError(f"model: got {type(model).__name__}; expected transformers' LlavaForConditionalGeneration")
    if not isinstance(model.model.language_model, LlamaModel):
        kind = type(model.model.language_model).__name__
        raise TypeError(f"model: its language model is a {kind}; only Llama decoders (LLaVA-1.5) can be pruned")


@contextmanager
def attach(model: LlavaForConditionalGeneration, pruner: Pruner) -> Iterator[Trace]:
    """Install the decoder-side hooks of `pruner`, and yield the `Trace` of the calls made under it.

    Every prefill inside (a forward with an empty cache) is pruned and starts the trace anew; decoding goes on with
    what was kept. On leaving, also by an exception, nothing of it remains on the model. Raises `ValueError` for a
    vision-side method (these shorten the prompt: use `generate`), for a budget out of reach, and, when the model
    runs, for calls that cannot be pruned correctly.
    """
    check_model(model)
    if pruner.side == "vision":
        raise ValueError(f"method {pruner.name!r} drops tokens before the language model; use finepruner_lmms.generate")
    if model in _attached:
        raise RuntimeError("a pruner is attached to this model already; leave its `with` block first")
    trace, handles = Trace(), []
    _attached.add(model)
    try:
        handles = _Hooks(model, pruner, trace).register()
        yield trace
        trace.check_finite()
    finally:
        for handle in handles:
            handle.remove()
        _attached.discard(model)


@dataclass
class _View:
    """What the layers from one drop to the next see: the layout, and positions grown by decode."""

    layout: Layout
    positions: Tensor  # [B, L] of the current forward
    valid: Tensor | None  # [B, L + decoded] over the whole cache; None: no padding, and so no mask is needed
    shift: Tensor | int = 0  # [B, 1], subtracted from the positions of decode where a stage renumbers
    kwargs: dict[str, Any] | None = None  # mask, positions and rotary embeddings of the current forward


class _Hooks:
    """The hooks of one `attach`, and the state they share during a call."""

    def __init__(self, model: LlavaForConditionalGeneration, pruner: Pruner, trace: Trace) -> None:
        self.llava, self.decoder = model.model, model.model.language_model
        self.top = model
        self.geometry = Geometry.of(model.config)
        self.pruner, self.trace = pruner, trace
        pruner.check_heads(self.geometry.num_heads)
        self.stages = pruner.stages(self.geometry.num_layers, self.geometry.num_visual_tokens)
        self.layout: Layout | None = None  # of the prompt; None: nothing to prune in this call
        self.prefill = False
        self.new_valid: Tensor | None = None  # [B, q] of the tokens of this forward
        self.views: dict[int, _View] = {}
        self.query: dict[int, tuple[Tensor, Any, Tensor]] = {}

    def register(self) -> list[Any]:
        hooks = [
            self.llava.register_forward_pre_hook(self.on_call, with_kwargs=True),
            self.decoder.register_forward_hook(self.after_call, with_kwargs=True),
        ]
        if not self.stages:
            return hooks
        hooks.append(self.top.register_forward_pre_hook(_refuse_labels, with_kwargs=True))
        layers = self.decoder.layers
        for stage in self.stages:
            watch = partial(self.on_attention, stage.layer)
            hooks.append(layers[stage.layer - 1].self_attn.register_forward_pre_hook(watch, with_kwargs=True))
        for index in range(self.stages[0].layer, len(layers)):
            hooks.append(layers[index].register_forward_pre_hook(partial(self.on_layer, index), with_kwargs=True))
        return hooks

    def on_call(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the LLaVA model: tell prefill from decode, and read the prompt of a prefill."""
        cache, ids, mask = kwargs.get("past_key_values"), kwargs.get("input_ids"), kwargs.get("attention_mask")
        self.prefill = cache is None or cache.get_seq_length() == 0
        if self.prefill:
            self.views, self.query, self.layout = {}, {}, None
            if ids is None:
                raise ValueError("input_ids: missing; the visual tokens of a prompt are found by their placeholders")
            geometry = self.geometry
            if mask is not None and mask.ndim != 2:
                raise ValueError(f"attention_mask: has {mask.ndim} dimensions; pass the 2-D mask of the tokenizer")
            layout = read_layout(ids, mask, geometry.image_token_id, geometry.num_visual_tokens)
            self.trace.start(geometry.num_layers, geometry.num_visual_tokens, layout.has_image)
            if self.stages and any(layout.has_image):
                self.layout = layout
        elif self.layout is not None and ids is not None:
            if ids.shape[1] != 1:
                raise ValueError(
                    f"a forward of {ids.shape[1]} tokens after the prefill: chunked prefill, assisted decoding and "
                    "continued prompts cannot be pruned; decode one token at a time from an empty cache"
                )
            self.new_valid = None if mask is None else mask[:, -1:].bool()

    def after_call(self, _module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Any) -> None:
        """After the decoder: record the cache lengths of a prefill."""
        cache = getattr(output, "past_key_values", None)
        if self.prefill and isinstance(cache, Cache):
            self.trace.kv_lengths = [cache.get_seq_length(layer) for layer in range(self.geometry.num_layers)]

    def on_attention(self, stage: int, attn: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of the layer ahead of a drop: keep what its last row is recomputed from."""
        if self.prefill and self.layout is not None:
            cos, sin = kwargs["position_embeddings"]
            last = slice(-1, None)
            self.query[stage] = (kwargs["hidden_states"][:, last], attn, torch.stack([cos[:, last], sin[:, last]]))

    def on_layer(
        self, index: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a decoder layer: drop tokens where a stage begins, and swap in what belongs to the short sequence."""
        if self.layout is None:
            return None
        (hidden,) = args
        stage = max(s for s in self.stages if s.layer <= index)
        if stage.layer == index:
            cache = _supported_cache(kwargs.get("past_key_values"))
            if self.prefill:
                hidden = self.drop(stage.layer, stage.retained, hidden, cache, kwargs["position_ids"])
            else:
                self.grow(stage.layer, kwargs["position_ids"])
            view = self.views[index]
            view.kwargs = {
                "attention_mask": create_causal_mask(
                    self.decoder.config, hidden, view.valid, cache, view.positions, layer_idx=index
                ),
                "position_ids": view.positions,
                "position_embeddings": self.decoder.rotary_emb(hidden, position_ids=view.positions),
            }
        return (hidden,), kwargs | (self.views[stage.layer].kwargs or {})

    def drop(self, layer: int, retained: int, hidden: Tensor, cache: Cache, positions: Tensor) -> Tensor:
        """Choose and gather: `hidden` `[B, L, D]` → `[B, L', D]`, and the view of the layers from here on."""
        assert self.layout is not None and isinstance(self.pruner, DecoderPruner)
        earlier = [view for start, view in sorted(self.views.items()) if start < layer]
        before = earlier[-1] if earlier else _View(self.layout, positions.expand(len(hidden), -1), self.layout.valid)
        attention = self.last_query_attention(layer, cache, before)
        chosen = self.pruner.select(DecoderContext(layer, attention, before.layout.present), retained)
        if chosen.scores is not None:
            self.trace.watch(f"token scores of {self.pruner.name!r} at layer {layer}", chosen.scores)
        index, layout = drop_visual(before.layout, chosen.keep, retained)
        new = before.positions.gather(1, index)
        shift: Tensor | int = 0
        if self.pruner.renumber_positions:
            renumbered = (layout.valid.long().cumsum(1) - 1).clamp(min=0)
            shift = positions[:, -1:] - renumbered[:, -1:]
            new = renumbered
        # a data-dependent method may keep fewer than `retained`, which the host does not know: then a mask is needed
        exact = bool(not layout.padded and self.pruner.fills_budget)
        self.views[layer] = _View(layout, new, None if exact else layout.valid, shift)
        self.trace.keep_masks[layer] = layout.present
        if chosen.heads is not None:
            self.trace.heads, self.trace.head_scores = chosen.heads, chosen.head_scores
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))

    def grow(self, layer: int, positions: Tensor) -> None:
        """A decode step: one more token in the cache of the layers from here on."""
        view = self.views[layer]
        view.positions = positions - view.shift
        if view.valid is not None:
            new = view.valid.new_ones(len(view.valid), 1) if self.new_valid is None else self.new_valid
            view.valid = torch.cat([view.valid, new], dim=1)

    def last_query_attention(self, layer: int, cache: Cache, before: _View) -> Tensor:
        """The last prompt token's attention in the layer ahead: `[B, H, N]`, softmax over all keys, in float32."""
        hidden, attn, (cos, sin) = self.query.pop(layer)
        rows = attn.q_proj(hidden).view(len(hidden), 1, -1, attn.head_dim).transpose(1, 2)
        rows, _ = apply_rotary_pos_emb(rows, rows, cos, sin)
        keys = cache.layers[attn.layer_idx].keys.float()  # [B, KV heads, L, head_dim], rotated already
        # query heads of one group share their keys; folding them into the rows avoids repeating the keys
        grouped = rows.float().view(len(hidden), keys.shape[1], -1, attn.head_dim)
        logits = (grouped @ keys.transpose(2, 3)).flatten(1, 2) * attn.scaling
        logits = logits.masked_fill(~before.layout.valid[:, None], float("-inf"))
        columns = before.layout.columns[:, None].expand(-1, logits.shape[1], -1)
        return logits.softmax(-1).gather(2, columns) * before.layout.present[:, None]


def _supported_cache(cache: Any) -> Cache:
    """The cache, if each of its layers may have a length of its own; else `ValueError`."""
    if cache is None:
        raise ValueError("use_cache: pruning needs the key-value cache; call the model with use_cache=True")
    plain = isinstance(cache, Cache) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if not plain or cache.offloading:
        kind = type(cache).__name__
        raise ValueError(
            f"past_key_values: a {kind} of this kind gives every layer the same length or keeps its keys elsewhere, "
            "which pruning cannot use; pass none, or a DynamicCache"
        )
    return cache


def _refuse_labels(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise ValueError("labels: the logits of a pruned prompt are fewer than its labels; compute the loss without")
