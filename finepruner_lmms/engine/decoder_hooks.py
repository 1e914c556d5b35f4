"""Dropping tokens before a decoder layer, by forward hooks on an unmodified model.

`attach` registers hooks, which transformers calls with the arguments of each layer, and removes them again:

- on the LLaVA model: reads the prompt of a prefill (where the visual tokens stand, which columns are padding), finds
  the prompt that a decode step goes on with by its cache, and checks after a prefill that every drop took place;
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask

from finepruner_lmms.engine.dropping import Dropping
from finepruner_lmms.engine.generation_modes import checked_generation
from finepruner_lmms.engine.parts import check_model
from finepruner_lmms.engine.prompt_layout import read_layout
from finepruner_lmms.engine.prompt_state import PromptState, View
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.engine.versions import cache_of_output, find_cache, warn_if_untested
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.base import Pruner

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_COMPILED = "is compiled, and compiled code may pass by the hooks that prune"
_UNCOMPILED = "use the model as transformers loads it, without torch.compile"


@contextmanager
def attach(
    model: LlavaForConditionalGeneration, pruner: Pruner, *, num_visual_tokens: int | None = None
) -> Iterator[Trace]:
    """Install the decoder-side hooks of `pruner`, and yield the `Trace` of the calls made under it.

    Every prefill inside (a forward with an empty cache) is pruned and starts the trace anew; decoding goes on with
    what was kept of the prompt whose cache it is given, in any order of several prompts. `num_visual_tokens` is the
    number of placeholders of an image where it is not the model's own. On leaving, also by an exception, nothing of it
    remains on the model. Raises `FieldError` for a vision-side method (these shorten the prompt: use `generate`), for
    a budget out of reach, for a compiled model and for a method that breaks the contract of `pruners.base`; and, when
    the model runs, for calls that cannot be pruned correctly.
    """
    check_model(model)
    warn_if_untested()
    if pruner.side in ("vision", "both"):
        raise FieldError(
            "method",
            f"{pruner.name!r} drops tokens before the language model",
            value=pruner.name,
            fix="use finepruner_lmms.generate",
        )
    if model in _attached:
        raise RuntimeError("a pruner is attached to this model already; leave its `with` block first")
    trace = Trace()
    hooks = _Hooks(model, pruner, trace, num_visual_tokens)
    with ExitStack() as undo:
        _attached.add(model)
        undo.callback(_attached.discard, model)
        hooks.register(undo)
        undo.enter_context(checked_generation(model))
        # what was compiled outside of the model, such as torch.compile(model.forward), runs its hooks only when eager
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        yield trace
        trace.check()


class _Hooks:
    """The hooks of one `attach`, and what they remember of the prompts that were read under it."""

    def __init__(
        self, model: LlavaForConditionalGeneration, pruner: Pruner, trace: Trace, num_visual_tokens: int | None
    ) -> None:
        self.top, self.llava, self.decoder = model, model.model, model.model.language_model
        self.dropping = Dropping(model, pruner, trace, num_visual_tokens)
        self.geometry, self.stages, self.trace = self.dropping.geometry, self.dropping.stages, trace
        if self.stages:
            _check_not_compiled([self.top, self.llava, self.decoder, *self.decoder.layers])
        self.prompts: weakref.WeakKeyDictionary[Cache, PromptState] = weakref.WeakKeyDictionary()
        self.current: PromptState | None = None  # of the forward that is under way
        self.reached = False  # whether the forward of the whole model came to the LLaVA model inside

    def register(self, undo: ExitStack) -> None:
        """Put the hooks on the model; `undo` takes them off again, also when this stops half way."""

        def add(register: Any, hook: Any, **how: Any) -> None:
            undo.callback(register(hook, **how).remove)

        add(self.llava.register_forward_pre_hook, self.on_call, with_kwargs=True)
        add(self.decoder.register_forward_hook, self.after_decoder)
        if not self.stages:
            return
        layers = self.decoder.layers
        add(self.top.register_forward_pre_hook, self.on_top, with_kwargs=True)
        add(self.top.register_forward_hook, self.after_top)
        add(self.llava.register_forward_hook, self.after_call, always_call=True)
        add(layers[0].register_forward_pre_hook, self.on_first_layer, with_kwargs=True)
        for stage in self.stages:
            watch = partial(self.on_attention, stage.layer)
            add(layers[stage.layer - 1].self_attn.register_forward_pre_hook, watch, with_kwargs=True)
        for index in range(self.stages[0].layer, len(layers)):
            add(layers[index].register_forward_pre_hook, partial(self.on_layer, index), with_kwargs=True)

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
            raise FieldError("model", _COMPILED, fix=_UNCOMPILED)

    def on_call(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the LLaVA model: tell prefill from decode, and read the prompt of a prefill."""
        self.reached = True
        cache = find_cache(kwargs)
        if cache is None or not cache.get_seq_length():
            self.current = self.read_prompt(kwargs)
        elif self.stages:
            self.current = self.find_prompt(cache, kwargs)

    def read_prompt(self, kwargs: dict[str, Any]) -> PromptState:
        """The state of a new prompt, which also starts the trace anew."""
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None:
            raise FieldError("input_ids", "missing; the visual tokens of a prompt are found by their placeholders")
        if mask is not None and mask.ndim != 2:
            raise FieldError(
                "attention_mask", f"has {mask.ndim} dimensions", fix="pass the 2-D mask of the tokenizer", value=mask
            )
        geometry = self.geometry
        layout = read_layout(ids, mask, geometry.image_token_id, geometry.num_visual_tokens)
        self.trace.start(geometry.num_layers, geometry.num_visual_tokens, layout.has_image)
        return PromptState(layout if self.stages and any(layout.has_image) else None, len(ids))

    def find_prompt(self, cache: Cache, kwargs: dict[str, Any]) -> PromptState:
        """The state of the prompt that `cache` holds, for one more token."""
        state = self.prompts.get(cache)
        if state is None:
            raise FieldError(
                "past_key_values",
                "was not filled under this attach, so how its prompt was pruned is not known",
                fix="start from an empty cache inside the `with` block",
            )
        if kwargs.get("pixel_values") is not None or kwargs.get("mm_encoder_outputs"):
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
        if not self.stages:
            self.current = None

    def after_call(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """After the LLaVA model: every drop of a prefill must have taken place. `output` is None after an exception."""
        state, self.current = self.current, None
        if state is None or not state.prefill:
            return
        state.end_prefill()
        missing = [stage.layer for stage in self.stages if stage.layer not in state.views]
        if output is not None and state.layout is not None and missing:
            raise _not_dropped(missing[0])

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

    def on_first_layer(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder: tie a prompt to its cache, and keep its embeddings until the last drop."""
        state, cache = self.running(), find_cache(kwargs)
        if state.prefill:
            if isinstance(cache, Cache):
                self.prompts[cache] = state
            if state.layout is not None:
                state.embeds = args[0]

    def on_attention(self, stage: int, attn: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the attention of the layer ahead of a drop: keep what its rows are recomputed from."""
        state = self.running()
        if state.prefill and state.layout is not None:
            state.inputs[stage] = (kwargs["hidden_states"], attn, kwargs["position_embeddings"])

    def on_layer(
        self, index: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a decoder layer: drop tokens where a stage begins, and swap in what belongs to the short sequence."""
        state = self.running()
        if state.layout is None:
            return None
        (hidden,) = args
        stage = max(s for s in self.stages if s.layer <= index)
        if stage.layer == index:
            cache, positions = _supported_cache(find_cache(kwargs)), kwargs["position_ids"].to(hidden.device)
            if state.prefill:
                hidden = self.dropping.drop(state, stage, hidden, cache.layers[index - 1].keys, positions)
            else:
                _check_length(cache, index, state.views[index])
                state.views[index].grow(positions, state.new_valid)
            view = state.views[index]
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
        elif stage.layer not in state.views:
            raise _not_dropped(stage.layer)
        return (hidden,), kwargs | state.views[stage.layer].kwargs


def _not_dropped(layer: int) -> FieldError:
    return FieldError(
        "model",
        f"no token was dropped before decoder layer {layer}, because its hooks did not run: the model is compiled, or "
        "its layers were replaced",
        fix=_UNCOMPILED,
    )


def _check_not_compiled(modules: Sequence[nn.Module]) -> None:
    """Raise `FieldError` if one of the modules with hooks is compiled: its code may have been made without them."""
    for module in modules:
        # what `module.compile()` and `module.forward = torch.compile(module.forward)` leave behind
        called = getattr(module, "_compiled_call_impl", None)
        if called is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise FieldError("model", f"its {type(module).__name__} {_COMPILED}", fix=_UNCOMPILED)


def _check_length(cache: Cache, layer: int, view: View) -> None:
    """Raise `FieldError` unless the cache of a layer holds what was put there under this `attach`."""
    if (length := cache.get_seq_length(layer)) != view.length:
        raise FieldError(
            "past_key_values",
            f"holds {length} tokens at layer {layer}, where pruning and decoding left {view.length}: it was changed "
            "meanwhile",
            fix="leave the cache to the model",
        )


def _supported_cache(cache: Any) -> Cache:
    """The cache, if each of its layers may have a length of its own; else `FieldError`."""
    if cache is None:
        raise FieldError("use_cache", "pruning needs the key-value cache", fix="call the model with use_cache=True")
    plain = isinstance(cache, Cache) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if not plain or cache.offloading:
        raise FieldError(
            "past_key_values",
            f"a {type(cache).__name__} of this kind gives every layer the same length or keeps its keys elsewhere, "
            "which pruning cannot use",
            fix="pass none, or a DynamicCache",
        )
    return cache
