"""Dropping tokens before a decoder layer, by forward hooks on an unmodified model.

`attach` registers forward pre-hooks, which transformers calls with the arguments of each layer, and removes them again:

- on the LLaVA model: reads the prompt of a prefill (where the visual tokens stand, which columns are padding);
- on the attention of the layer before a drop: keeps a reference to its input, from which the rows that a method reads
  are recomputed in float32 with the layer's own query projection and cached keys. No full attention map is ever
  built, so SDPA or flash attention stays on in every layer;
- on every decoder layer from the first drop on: at a drop, gathers the kept tokens; in prefill and decode, swaps in
  the mask, positions and rotary embeddings of the short sequence. `LlamaModel.forward` computes these once for all
  layers, from layer 0, which still holds the long sequence.

The caches of the layers need no care: each layer caches what it is given.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finepruner_lmms.engine.attention_rows import TEXT_ROWS, split_heads, visual_rows
from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.parts import check_model
from finepruner_lmms.engine.prompt_layout import Layout, drop_visual, read_layout
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.ops.selection import take, with_required
from finepruner_lmms.pruners.base import DecoderPruner, Pruner, Stage
from finepruner_lmms.pruners.decoder_context import DecoderContext

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def attach(
    model: LlavaForConditionalGeneration, pruner: Pruner, *, num_visual_tokens: int | None = None
) -> Iterator[Trace]:
    """Install the decoder-side hooks of `pruner`, and yield the `Trace` of the calls made under it.

    Every prefill inside (a forward with an empty cache) is pruned and starts the trace anew; decoding goes on with
    what was kept. `num_visual_tokens` is the number of placeholders of an image where it is not the model's own. On
    leaving, also by an exception, nothing of it remains on the model. Raises `ValueError` for a vision-side method
    (these shorten the prompt: use `generate`), for a budget out of reach, and, when the model runs, for calls that
    cannot be pruned correctly.
    """
    check_model(model)
    if pruner.side in ("vision", "both"):
        raise ValueError(f"method {pruner.name!r} drops tokens before the language model; use finepruner_lmms.generate")
    if model in _attached:
        raise RuntimeError("a pruner is attached to this model already; leave its `with` block first")
    trace, handles = Trace(), []
    _attached.add(model)
    try:
        handles = _Hooks(model, pruner, trace, num_visual_tokens).register()
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

    def __init__(
        self, model: LlavaForConditionalGeneration, pruner: Pruner, trace: Trace, num_visual_tokens: int | None
    ) -> None:
        self.llava, self.decoder = model.model, model.model.language_model
        self.top = model
        self.geometry = Geometry.of(model.config)
        if num_visual_tokens is not None:
            self.geometry = replace(self.geometry, num_visual_tokens=num_visual_tokens)
        self.pruner, self.trace = pruner, trace
        pruner.check_heads(self.geometry.num_heads)
        self.stages = pruner.stages(self.geometry.num_layers, self.geometry.num_visual_tokens)
        self.layout: Layout | None = None  # of the prompt; None: nothing to prune in this call
        self.prefill = False
        self.new_valid: Tensor | None = None  # [B, q] of the tokens of this forward
        self.views: dict[int, _View] = {}
        self.inputs: dict[int, tuple[Tensor, Any, tuple[Tensor, Tensor]]] = {}
        self.embeds: Tensor | None = None  # [B, L, D], what enters the first layer of a prefill
        self.memory: dict[str, Any] = {}

    def register(self) -> list[Any]:
        hooks = [
            self.llava.register_forward_pre_hook(self.on_call, with_kwargs=True),
            self.decoder.register_forward_hook(self.after_call, with_kwargs=True),
        ]
        if not self.stages:
            return hooks
        hooks.append(self.top.register_forward_pre_hook(_refuse_labels, with_kwargs=True))
        layers = self.decoder.layers
        hooks.append(layers[0].register_forward_pre_hook(self.on_first_layer))
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
            self.views, self.inputs, self.layout, self.embeds, self.memory = {}, {}, None, None, {}
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

    def on_first_layer(self, _layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the decoder: keep the embeddings of a prompt until the last drop."""
        if self.prefill and self.layout is not None:
            self.embeds = args[0]

    def on_attention(self, stage: int, attn: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of the layer ahead of a drop: keep what its rows are recomputed from."""
        if self.prefill and self.layout is not None:
            self.inputs[stage] = (kwargs["hidden_states"], attn, kwargs["position_embeddings"])

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
                hidden = self.drop(stage, hidden, cache, kwargs["position_ids"])
            else:
                self.grow(stage.layer, kwargs["position_ids"])
            view = self.views[index]
            view.kwargs = {
                # with padding the mask is needed, and not asking whether it is spares a wait for the device
                "attention_mask": create_causal_mask(
                    self.decoder.config,
                    hidden,
                    view.valid,
                    cache,
                    view.positions,
                    layer_idx=index,
                    allow_is_causal_skip=view.valid is None,
                ),
                # the rotary embeddings say it all; flash attention would take gaps for several packed prompts
                "position_ids": None,
                "position_embeddings": self.decoder.rotary_emb(hidden, position_ids=view.positions),
            }
        return (hidden,), kwargs | (self.views[stage.layer].kwargs or {})

    def drop(self, stage: Stage, hidden: Tensor, cache: Cache, positions: Tensor) -> Tensor:
        """Choose and gather: `hidden` `[B, L, D]` → `[B, L', D]`, and the view of the layers from here on."""
        assert self.layout is not None and isinstance(self.pruner, DecoderPruner)
        layer = stage.layer
        earlier = [view for start, view in sorted(self.views.items()) if start < layer]
        before = earlier[-1] if earlier else _View(self.layout, positions.expand(len(hidden), -1), self.layout.valid)
        chosen = self.pruner.select(self.context(stage, hidden, cache, before), stage.retained)
        if chosen.scores is not None:
            self.trace.watch(f"token scores of {self.pruner.name!r} at layer {layer}", chosen.scores)
        if stage.merged:
            if chosen.merged is None or chosen.merged.shape[1] != stage.merged or chosen.merged_from is None:
                raise ValueError(f"{self.pruner.name!r} promised {stage.merged} merged tokens at layer {layer}")
            hidden = torch.cat([hidden, chosen.merged.to(hidden.dtype)], dim=1)
        keep, required = chosen.keep, before.layout.required()
        if required is not None:
            keep = with_required(keep, required, stage.retained, chosen.scores)
        index, layout = drop_visual(before.layout, keep, stage.retained, stage.merged)
        shift: Tensor | int = 0
        if self.pruner.renumber_positions:
            new = (layout.valid.long().cumsum(1) - 1).clamp(min=0)
            shift = before.positions[:, -1:] - new[:, -1:] + before.shift
        else:
            old, shift = before.positions, before.shift
            if stage.merged:
                assert chosen.merged_from is not None
                old = torch.cat([old, old.gather(1, before.layout.columns.gather(1, chosen.merged_from))], dim=1)
            new = old.gather(1, index)
        # a data-dependent method may keep fewer than `retained`, which the host does not know: then a mask is needed
        exact = bool(not layout.padded and self.pruner.fills_budget)
        self.views[layer] = _View(layout, new, None if exact else layout.valid, shift)
        self.trace.keep_masks[layer] = layout.present
        if chosen.heads is not None and chosen.head_scores is not None:
            self.trace.chosen_heads[layer] = chosen.heads, chosen.head_scores
        if chosen.details is not None:
            self.trace.details[layer] = chosen.details
        del self.inputs[layer]
        if stage is self.stages[-1]:
            self.embeds, self.memory = None, {}
        return take(hidden, index)

    def context(self, stage: Stage, hidden: Tensor, cache: Cache, before: _View) -> DecoderContext:
        """What the method may look at; everything but the layout is computed when it is read."""
        layout, prompt, embeds = before.layout, self.layout, self.embeds
        assert prompt is not None and embeds is not None

        def own(rows: int, skip: int = 0) -> Tensor:
            entered, attn, rotary = self.inputs[stage.layer]
            keys = cache.layers[attn.layer_idx].keys  # rotated already
            return visual_rows(entered, attn, rotary, keys, layout, rows, skip)

        def of_text() -> Iterator[tuple[slice, Tensor]]:
            for skip in range(0, prompt.tail, TEXT_ROWS):
                rows = min(TEXT_ROWS, prompt.tail - skip)
                yield slice(prompt.tail - skip - rows, prompt.tail - skip), own(rows, skip)

        def of_next() -> Tensor:
            layer = self.decoder.layers[stage.layer]
            rotary = self.decoder.rotary_emb(hidden, position_ids=before.positions)
            inside = layer.input_layernorm(hidden)
            keys = split_heads(layer.self_attn.k_proj(inside), layer.self_attn)
            keys, _ = apply_rotary_pos_emb(keys, keys, *rotary)
            return visual_rows(inside, layer.self_attn, rotary, keys, layout, 1)[:, :, 0]

        return DecoderContext(
            stage.layer,
            lambda: own(1)[:, :, 0],
            layout.present,
            self.entering(stage),
            layout.required(),
            of_text,
            next_attention=of_next,
            text_present=prompt.text_after_image,
            prefix_lengths=lambda: prompt.valid.sum(1) - prompt.text_after - prompt.present.sum(1),
            hidden=lambda: take(hidden, layout.columns),
            visual_embeds=lambda: take(embeds, prompt.columns),
            text_embeds=lambda: embeds[:, embeds.shape[1] - prompt.tail :],
        ).remember_in(self.memory)

    def entering(self, stage: Stage) -> int:
        """The visual tokens of an image just before a drop, by the schedule."""
        earlier = [one.retained + one.merged for one in self.stages if one.layer < stage.layer]
        return earlier[-1] if earlier else self.geometry.num_visual_tokens

    def grow(self, layer: int, positions: Tensor) -> None:
        """A decode step: one more token in the cache of the layers from here on."""
        view = self.views[layer]
        view.positions = positions - view.shift
        if view.valid is not None:
            new = view.valid.new_ones(len(view.valid), 1) if self.new_valid is None else self.new_valid
            view.valid = torch.cat([view.valid, new], dim=1)


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
