"""Guards against waiting for a device and copying from the host, which work where there is no GPU.

A GPU's host waits for every value that it reads and for every copy of a constant, and a CUDA graph can capture
neither. Nothing of this shows on a CPU, so what would do it is refused there by name, and the `meta` device of torch
takes the place of a GPU.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicCache

from finepruner_lmms.engine.decoder_hooks import _Hooks
from finepruner_lmms.engine.parts import decoder_layers
from finepruner_lmms.engine.prompt_layout import read_layout, shorten_prompt
from finepruner_lmms.engine.prompt_state import on_device
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.pruners import DecoderContext
from finepruner_lmms.testing.samples import (
    IMAGE,
    PAD,
    SOURCES,
    VISUAL,
    RandomFirstLayer,
    decoder_context,
    prompts,
    tiny_llava,
    vision_outputs,
)


class HostSync(RuntimeError):
    """Something on the hot path asked the device for a value."""


class _NoHostSync(TorchDispatchMode):
    """Refuses what makes a GPU's host wait: reading a value, shapes that depend on values, constants from the host."""

    _ASKING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique",
        "unique",
        "equal",
        "is_nonzero",
        "bincount",
        "repeat_interleave",
        "allclose",
        "histc",
        "_linalg",  # decompositions, which ask whether they went well
        "linalg_eig",
        "linalg_lstsq",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index")) and any(
            isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
            for item in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name.startswith(self._ASKING) or by_mask:
            raise HostSync(f"{func} reads a value back to the host")
        if name == "lift_fresh" and args[0].ndim and args[0].numel():  # a number alone is filled in there
            raise HostSync("a tensor made of Python numbers is copied to the device")
        return func(*args, **(kwargs or {}))


class _NoReading(TorchFunctionMode):
    """Refuses what hands a tensor's values to Python, or Python's to a tensor; on a CPU, some of it dispatches nothing.

    A GPU's host waits for a copy in either direction, and a CUDA graph cannot capture one.
    """

    _READING = frozenset(
        ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__")
    )

    _COPYING = frozenset(("tensor", "as_tensor", "asarray", "new_tensor", "from_numpy", "frombuffer"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._READING:
            raise HostSync(f"Tensor.{name} reads a value back to the host")
        if name in self._COPYING and not (isinstance(args[0], list) and not args[0]):  # of nothing, nothing is copied
            raise HostSync(f"torch.{name} copies values from the host to the device")
        if name in ("__getitem__", "__setitem__"):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) or type(part).__module__ == "numpy" for part in parts):
                raise HostSync(f"Tensor.{name} with a list copies it from the host to the device")
        return func(*args, **(kwargs or {}))


class _OneDevice(TorchDispatchMode):
    """Refuses tensors on the host where everything that was given stands on a device: made now, or kept from before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(given, Tensor) and given.is_cpu for given in tree_leaves((args, kwargs))):
            raise HostSync(f"{func} takes a tensor on the host, which then has to be copied to the device")
        result = func(*args, **(kwargs or {}))
        if any(isinstance(made, Tensor) and made.is_cpu and made.ndim for made in tree_leaves(result)):
            raise HostSync(f"{func} makes a tensor on the host, which then has to be copied to the device")
        return result


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Raise `HostSync` where the code inside makes the host wait for a device, or would if it ran on one.

    That is: reads a tensor's value, indexes with a mask, or copies a constant from the host to the device.
    """
    with _NoReading(), _NoHostSync():
        yield


def choose_without_host_copy(pruner: Any, visual: int = VISUAL) -> None:
    """Let the method choose from tensors on a device without values: what is read, or made elsewhere, is `HostSync`.

    The `meta` device of torch takes the place of a GPU, so that code which asks where a tensor stands takes its way.
    """
    before, inside = pruner.parts(visual)
    if before is not None:
        seen = vision_outputs(visual=visual)
        there: dict[str, Any] = {
            name: value.to("meta") for name, value in seen.tensors().items() if name != "text_embeds"
        }
        width = seen.image_embeds.shape[-1] if before.reads_question == "clip" else seen.projected.shape[-1]
        there["text_embeds"] = [text.new_empty(len(text), width, device="meta") for text in seen.text_embeds]
        there["projector"] = lambda tokens: tokens.new_empty(*tokens.shape[:-1], seen.projected.shape[-1])
        asks, answers, heads = seen.first_layer
        there["first_layer"] = RandomFirstLayer(asks.to("meta"), answers.to("meta"), heads)
        with no_host_sync(), _OneDevice():
            before.reduce(seen.replace(**there))
    if inside is not None:
        state = decoder_context(visual=visual)
        sources: dict[str, Any] = {name: getattr(state, name).to("meta") for name in (*SOURCES, "text_embeds")}
        required = torch.zeros_like(state.present, device="meta")
        attention = state.attention.to("meta")
        sources["attention_in"] = lambda _: attention
        context = DecoderContext(2, attention, required, visual, required, **sources)
        with no_host_sync(), _OneDevice():
            inside.select(context, visual // 2)


@functools.cache
def _llava_without_values() -> Any:
    return copy.deepcopy(tiny_llava()).to("meta")


def prefill_without_host_copy(pruner: Any, *rows: tuple[int, int] | int) -> None:
    """Run the decoder over prompts of these `rows` on a device without values, as `choose_without_host_copy` does.

    The prompts are read and shortened before, as in a prefill that is captured; then come all layers and drops.
    """
    model, given, (before, inside) = _llava_without_values(), prompts(*rows), pruner.parts(VISUAL)
    if inside is None:
        return
    left = VISUAL if before is None else before.retained(VISUAL)
    ids, mask = given["input_ids"], given["attention_mask"]
    if left < VISUAL:
        ids, mask = shorten_prompt(ids, read_layout(ids, mask, IMAGE, VISUAL), left, PAD)
    hooks = _Hooks(model, inside, Trace(), left)
    with ExitStack() as undo:
        hooks.register(undo)
        there = torch.device("meta")
        hooks.current = hooks.dropping.start(on_device(read_layout(ids, mask, IMAGE, left), there), len(ids))
        embeds = torch.empty(*ids.shape, model.config.text_config.hidden_size, device=there)
        positions = torch.arange(ids.shape[1], device=there)[None]
        with torch.no_grad(), no_host_sync(), _OneDevice():
            model.model.language_model(
                inputs_embeds=embeds, position_ids=positions, past_key_values=DynamicCache(), use_cache=True
            )
        assert sorted(hooks.trace.keep_masks) == [stage.layer for stage in hooks.stages]


@contextmanager
def prefill_without_host_sync(model: Any) -> Iterator[None]:
    """`no_host_sync` from the first decoder layer of the first forward inside to its last."""
    layers, mode, seen = decoder_layers(model), no_host_sync(), list[str]()

    def enter(*_: Any) -> None:
        if not seen:
            mode.__enter__()
            seen.append("entered")

    def leave(*_: Any) -> None:
        if seen == ["entered"]:
            mode.__exit__(None, None, None)
            seen.append("left")

    handles = [layers[0].register_forward_pre_hook(enter), layers[-1].register_forward_hook(leave)]
    try:
        yield
    finally:
        leave()
        for handle in handles:
            handle.remove()
    assert seen == ["entered", "left"], "the model did not run"
