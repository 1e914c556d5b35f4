"""Dropping tokens before a decoder layer, by forward hooks on an unmodified model.

`attach` registers hooks, which transformers calls with the arguments of each layer, and removes them again:

- on the model inside: reads the prompt of a prefill (where the visual tokens stand, which columns are padding), finds
  the prompt that a decode step goes on with by its cache, and checks after a prefill that every drop took place;
- on the decoder: drops at its entrance what a method before the language model has not chosen, and takes over what is
  the prompt's own: positions in a grid, and features that are added to the visual tokens after later layers;
- on the attention of the layer before a drop: keeps a reference to its input, from which the rows that a method reads
  are recomputed in float32 with the layer's own query projection and cached keys; of earlier layers that the method
  asks for, the last token's input alone. No full attention map is ever built, so SDPA or flash attention stays on in
  every layer;
- on every decoder layer from the first drop on: at a drop, gathers the kept tokens; in prefill and decode, swaps in
  the mask, positions and rotary embeddings of the short sequence. `LlamaModel.forward` computes these once for all
  layers, from layer 0, which still holds the long sequence.

The caches of the layers need no care: each layer caches what it is given.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from finepruner_lmms.engine.attention_rows import check_layers
from finepruner_lmms.engine.calls import (
    COMPILED,
    UNCOMPILED,
    bound,
    check_length,
    check_not_compiled,
    not_dropped,
    supported_cache,
)
from finepruner_lmms.engine.dropping import Dropping
from finepruner_lmms.engine.entrance import Entrance
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.generation_modes import checked_generation
from finepruner_lmms.engine.prompt_layout import read_layout
from finepruner_lmms.engine.prompt_reading import read_prompt
from finepruner_lmms.engine.prompt_state import LastToken, PromptState
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.versions import cache_of_output, copies_images, find_cache, warn_if_untested
from finepruner_lmms.errors import FieldError
from finepruner_lmms.ops.selection import take
from finepruner_lmms.pruners.base import Pruner

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def attach(model: Any, pruner: Pruner, *, num_visual_tokens: int | None = None) -> Iterator[Trace]:
    """Install the decoder-side hooks of `pruner`, and yield the `Trace` of the calls made under it.

    Every prefill inside (a forward with an empty cache) is pruned and starts the trace anew; decoding goes on with
    what was kept of the prompt whose cache it is given, in any order of several prompts. `model` is an unmodified one
    of any family; its own `generate` and the outputs of its processor work inside. `num_visual_tokens` is the number of
    placeholders of an image where it is not the model's own. On leaving, also by an exception, nothing of it
    remains on the model. Raises `FieldError` for a vision-side method (these shorten the prompt: use `generate`), for
    a budget out of reach, for a compiled model and for a method that breaks the contract of `pruners.base`; and, when
    the model runs, for calls that cannot be pruned correctly.
    """
    family_of(model)
    if pruner.side in ("vision", "both"):
        raise FieldError(
            "method",
            f"{pruner.name!r} drops tokens before the language model",
            value=pruner.name,
            fix="use finepruner_lmms.generate",
        )
    with attached(model, pruner, num_visual_tokens) as trace:
        yield trace


@contextmanager
def attached(
    model: Any,
    pruner: Pruner,
    num_visual_tokens: int | None = None,
    entrance: Entrance | None = None,
    described: Mapping[str, Any] | None = None,
) -> Iterator[Trace]:
    """`attach` for any method; what one before the language model leaves of each image is given as `entrance`.

    `described` tells of the images what the calls inside do not: of encoded ones, `generate` is not given the pixels.
    """
    warn_if_untested()
    if model in _attached:
        raise RuntimeError("a pruner is attached to this model already; leave its `with` block first")
    trace = Trace()
    hooks = _Hooks(model, pruner, trace, num_visual_tokens, entrance)
    with ExitStack() as undo:
        _attached.add(model)
        undo.callback(_attached.discard, model)
        hooks.register(undo)
        hooks.described = described or {}
        undo.enter_context(checked_generation(model, hooks.on_generate))
        # what was compiled outside of the model, such as torch.compile(model.forward), runs its hooks only when eager
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        yield trace
        trace.check()


class _Hooks:
    """The hooks of one `attach`, and what they remember of the prompts that were read under it."""

    def __init__(
        self,
        model: Any,
        pruner: Pruner,
        trace: Trace,
        num_visual_tokens: int | None = None,
        entrance: Entrance | None = None,
    ) -> None:
        self.dropping = Dropping(model, pruner, trace, num_visual_tokens, entrance)
        self.top, self.inner, self.decoder = model, model.model, self.dropping.decoder
        self.family, self.config, self.shortened = self.dropping.family, model.config, num_visual_tokens
        self.geometry, self.trace, self.entrance = self.dropping.geometry, trace, entrance
        self.stages = self.dropping.stages
        self.prunes = self.dropping.prunes
        if self.prunes:
            check_layers(self.decoder.layers)
            check_not_compiled([self.top, self.inner, self.decoder, *self.decoder.layers])
        self.prompts: weakref.WeakKeyDictionary[Cache, PromptState] = weakref.WeakKeyDictionary()
        self.current: PromptState | None = None  # of the forward that is under way
        self.reached = False  # whether the forward of the whole model came to the model inside
        self.described: Mapping[str, Any] = {}  # of the images, where no call says it
        self.told: Mapping[str, Any] = {}  # the arguments of the `generate` that is under way

    def register(self, undo: ExitStack) -> None:
        """Put the hooks on the model; `undo` takes them off again, also when this stops half way."""

        def add(register: Any, hook: Any, **how: Any) -> None:
            undo.callback(register(hook, **how).remove)

        add(self.inner.register_forward_pre_hook, self.on_call, with_kwargs=True)
        add(self.decoder.register_forward_hook, self.after_decoder)
        if not self.prunes:
            return
        layers = self.decoder.layers
        add(self.top.register_forward_pre_hook, self.on_top, with_kwargs=True)
        add(self.top.register_forward_hook, self.after_top)
        add(self.inner.register_forward_hook, self.after_call, always_call=True)
        if self.family.grid_positions or self.entrance is not None:
            add(self.decoder.register_forward_pre_hook, self.on_decoder, with_kwargs=True)
        add(layers[0].register_forward_pre_hook, self.on_first_layer, with_kwargs=True)
        drops = [stage.layer for stage in self.stages]
        read = {drop - 1 for drop in drops} | self.dropping.watched(drops)
        for layer in range(len(layers) - 1) if self.anywhere else sorted(read):
            watch = partial(self.on_attention, layer)
            add(layers[layer].self_attn.register_forward_pre_hook, watch, with_kwargs=True)
        for index in range(1 if self.anywhere else self.stages[0].layer, len(layers)):
            add(layers[index].register_forward_pre_hook, partial(self.on_layer, index), with_kwargs=True)
        for index in range(self.family.deep_features(self.config)):
            add(layers[index].register_forward_hook, partial(self.after_layer, index))

    @property
    def anywhere(self) -> bool:
        """Whether tokens may be dropped before any layer: it depends on the images of a prompt."""
        return self.dropping.varies or self.entrance is not None

    # -- around a forward ---------------------------------------------------------------------------------------------

    def on_top(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the whole model: refuse what asks for logits that a pruned prompt does not have."""
        self.reached = False
        if kwargs.get("labels") is not None:
            raise FieldError(
                "labels", "the logits of a pruned prompt are fewer than its labels", fix="compute the loss without"
            )
        wanted, cache = kwargs.get("logits_to_keep"), find_cache(kwargs)
        empty = cache is None or not cache.get_seq_length()
        if empty and wanted is not None and (isinstance(wanted, Tensor) or wanted > 1):
            raise FieldError(
                "logits_to_keep",
                "a prefill that reads the logits of more than its last token (assisted decoding, prompt lookup) cannot "
                "be pruned",
                value=wanted,
                fix="decode one token at a time, without an assistant, and leave logits_to_keep at 0 or 1",
            )

    def after_top(self, *_: Any) -> None:
        """After the whole model: it must have run the model inside, or nothing was pruned."""
        if not self.reached:
            raise FieldError("model", COMPILED, fix=UNCOMPILED)

    def on_generate(self, arguments: Mapping[str, Any]) -> None:
        """Before `generate` of the model: what it was given describes the images of the prefill to come."""
        self.told = arguments

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model inside: tell prefill from decode, and read the prompt of a prefill."""
        self.reached = True
        given = bound(module, args, kwargs)
        cache = find_cache(given)
        if cache is None or not cache.get_seq_length():
            self.current = self.read_prompt(given)
        elif self.prunes:
            self.current = self.find_prompt(cache, given)

    def read_prompt(self, kwargs: Mapping[str, Any]) -> PromptState:
        """The state of a new prompt, which also starts the trace anew."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None:
            raise FieldError("input_ids", "missing; the visual tokens of a prompt are found by their placeholders")
        if mask is not None and mask.ndim != 2:
            raise FieldError(
                "attention_mask", f"has {mask.ndim} dimensions", fix="pass the 2-D mask of the tokenizer", value=mask
            )
        if self.shortened is not None:
            layout = read_layout(ids, mask, self.geometry.image_token_id, self.shortened)
        else:
            # the images of beams are described once
            given = self.told.get("input_ids", self.told.get("inputs"))
            copies = len(ids) // len(given) if given is not None and len(given) else 1
            # `generate` hands on some of what describes images, and keeps the rest
            about: dict[str, Any] = {}
            for known in (self.described, self.told, kwargs):
                about |= {name: known[name] for name in self.family.media if known.get(name) is not None}
            layout = read_prompt(self.family, self.config, ids, mask, about, copies)
            if copies > 1 and not copies_images() and layout.shows_several:
                raise FieldError(
                    "num_beams",
                    f"transformers {transformers.__version__} gives beams of a row with several images other images",
                    fix="take transformers 5.20 or newer, or answer without beams",
                )
        return self.dropping.start(layout, len(ids))

    def find_prompt(self, cache: Cache, kwargs: Mapping[str, Any]) -> PromptState:
        """The state of the prompt that `cache` holds, for one more token."""
        state = self.prompts.get(cache)
        if state is None:
            raise FieldError(
                "past_key_values",
                "was not filled under this attach, so how its prompt was pruned is not known",
                fix="start from an empty cache inside the `with` block",
            )
        pixels = [name for name in self.family.media if name.startswith("pixel_values")]
        if kwargs.get("mm_encoder_outputs") or any(kwargs.get(name) is not None for name in pixels):
            raise FieldError(
                "past_key_values",
                "holds tokens already; an image can be pruned only where the cache before it is empty",
            )
        given = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        if len(given) != state.rows:
            raise FieldError("input_ids", f"{len(given)} rows go on with a prompt of {state.rows}", value=given)
        if state.layout is not None and given.shape[1] != 1:
            raise FieldError(
                "input_ids",
                f"a forward of {given.shape[1]} tokens after the prefill: chunked prefill, assisted decoding and "
                "continued prompts cannot be pruned",
                fix="decode one token at a time from an empty cache",
            )
        mask = kwargs.get("attention_mask")
        state.new_valid = None if mask is None else mask[:, -1:].bool()
        return state

    def after_decoder(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """After the decoder: record the cache lengths of a prefill."""
        cache = cache_of_output(output)
        if self.current is not None and self.current.prefill and isinstance(cache, Cache):
            self.trace.kv_lengths = [cache.get_seq_length(layer) for layer in range(self.geometry.num_layers)]
        if not self.prunes:
            self.current = None

    def after_call(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """After the LLaVA model: every drop of a prefill must have taken place. `output` is None after an exception."""
        state, self.current = self.current, None
        if state is None or not state.prefill:
            return
        state.end_prefill()
        missing = [layer for layer in state.layers if layer not in state.views]
        if output is not None and state.layout is not None and missing:
            raise not_dropped(missing[0])

    # -- inside a forward ---------------------------------------------------------------------------------------------

    def running(self) -> PromptState:
        """The prompt of the forward under way."""
        if self.current is None:
            raise FieldError(
                "model",
                "its language model was called by itself, or by compiled code, so its prompt was not seen",
                fix="call the whole model, without torch.compile",
            )
        return self.current

    def on_decoder(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the decoder: read positions in a grid, take deep features over, and drop what is not to enter."""
        state = self.running()
        if state.layout is None:
            return None
        embeds = kwargs["inputs_embeds"]
        positions = kwargs.get("position_ids")
        if positions is None:
            start = 0 if state.prefill else find_cache(kwargs).get_seq_length()
            positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)[None]
        if self.family.grid_positions:
            # a first row may hold the places in the text, from which transformers makes its mask
            positions = positions[1:] if positions.ndim == 3 and len(positions) == 4 else positions
            positions = positions.expand(3, *positions.shape[-2:]) if positions.ndim == 2 else positions
            state.positions = positions
        if state.prefill and (deep := kwargs.get("deepstack_visual_embeds")) is not None:
            at = kwargs["visual_pos_masks"].to(embeds.device)
            nothing = embeds.new_zeros(embeds.shape)
            state.deep = [nothing.masked_scatter(at[..., None], some.to(embeds)) for some in deep]
            state.origin = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
            kwargs = kwargs | {"deepstack_visual_embeds": None}
        if state.layers[0] > 0:
            return args, kwargs
        if state.prefill:
            embeds = self.dropping.enter(state, embeds, positions)
        else:
            check_length(supported_cache(find_cache(kwargs)), 0, state.views[0])
            state.views[0].grow(positions, state.new_valid)
        view = state.views[0]
        state.positions = view.positions if self.family.grid_positions else None
        # with padding the mask is needed, and not asking whether it is spares a wait for the device
        mask = None if view.valid is None else view.valid.long()
        return args, kwargs | {"inputs_embeds": embeds, "position_ids": view.positions, "attention_mask": mask}

    def after_layer(self, index: int, _layer: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """After a decoder layer: add the deep features of the prompt, at the columns where its tokens stand now."""
        state = self.running()
        if not state.prefill or index >= len(state.deep) or state.origin is None:
            return None
        return output + take(state.deep[index].to(output.device), state.origin.to(output.device))

    def on_first_layer(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the first layer: tie a prompt to its cache, and keep its embeddings until the last drop."""
        state, cache = self.running(), find_cache(kwargs)
        if state.prefill:
            if isinstance(cache, Cache):
                self.prompts[cache] = state
            if state.layout is not None:
                state.embeds = args[0]

    def on_attention(self, layer: int, attn: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of layer `layer`: keep what its rows are recomputed from, where a drop reads them."""
        state = self.running()
        if state.prefill and layer + 1 in state.layers:
            state.inputs[layer + 1] = (kwargs["hidden_states"], attn, kwargs["position_embeddings"])
        if state.prefill and layer in state.watched:
            state.asking[layer] = LastToken.of(kwargs["hidden_states"], attn, kwargs["position_embeddings"])

    def on_layer(
        self, index: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a decoder layer: drop tokens where a stage begins, and swap in what belongs to the short sequence."""
        state = self.running()
        # what is dropped at the entrance is gone from the decoder's own mask and positions
        layer = max((layer for layer in state.layers if 0 < layer <= index), default=None)
        if state.layout is None or layer is None:
            return None
        (hidden,) = args
        if layer == index:
            cache, positions = supported_cache(find_cache(kwargs)), self.positions(state, kwargs).to(hidden.device)
            if state.prefill:

                def cached(layer: int) -> tuple[Tensor, Tensor]:
                    return cache.layers[layer].keys, cache.layers[layer].values

                hidden = self.dropping.drop(state, index, hidden, cached, positions)
            else:
                check_length(cache, index, state.views[index])
                state.views[index].grow(positions, state.new_valid)
            view = state.views[index]
            view.kwargs = {
                # with padding the mask is needed, and not asking whether it is spares a wait for the device
                "attention_mask": create_causal_mask(
                    self.decoder.config,
                    hidden,
                    view.valid,
                    cache,
                    None if self.family.grid_positions else view.positions,
                    layer_idx=index,
                    allow_is_causal_skip=view.valid is None,
                ),
                # the rotary embeddings say it all; flash attention would take gaps for several packed prompts
                "position_ids": None,
                "position_embeddings": self.decoder.rotary_emb(hidden, position_ids=view.positions),
            }
        elif layer not in state.views:
            raise not_dropped(layer)
        return (hidden,), kwargs | state.views[layer].kwargs

    def positions(self, state: PromptState, kwargs: Mapping[str, Any]) -> Tensor:
        """The positions of this forward as the model counts them: `[B or 1, L]`, or `[3, B, L]`."""
        if self.family.grid_positions:
            assert state.positions is not None
            return state.positions
        return kwargs["position_ids"]
