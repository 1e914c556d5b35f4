"""Checks that every method has to pass, and the small random model they run on. For tests; nothing is downloaded.

A method from outside is checked like one of ours:

    import pytest
    from finepruner_lmms.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_method(check):
        check("my_method", reference)

`reference` is the method's choice in plain Python, for one image: a function of the pruner, what it sees (a
`VisionOutputs` or a `DecoderContext` of batch size 1) and the number of tokens to keep, which returns the kept tokens
in ascending order.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import finepruner_lmms as fp
from finepruner_lmms.engine.parts import decoder_layers
from finepruner_lmms.pruners import DecoderContext, DecoderPruner, VisionPruner, build_pruner, method_class
from finepruner_lmms.pruners.budget import parse_budget

IMAGE, PAD, VISUAL = 99, 0, 16
Reference = Callable[[Any, Any, int], list[int]]
OPTIONS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
_PARAMETERS = {"cdpruner": {"relevance": "embedding"}}  # the small model has no text tower


def rounding(layers: int = 6, dtype: torch.dtype = torch.float32, size: float = 1.0) -> dict[str, Any]:
    """How far apart two outputs of `tiny_llava` may lie that differ in nothing but the order of their sums.

    Processors differ in the order of a sum (vector width, fused multiply-add, the kernel chosen for a mask), and its n
    roundings behave like a random walk: the sum is off by some sqrt(n) eps (Higham and Mary, "A New Approach to
    Probabilistic Rounding Error Analysis", 2019), of which six times is allowed. n is counted along the longest way
    through `layers` decoder layers and the language head; `size` is how large the values are that are added. At six
    layers this is 4e-5, below the 1e-4 that is promised. For `torch.testing.assert_close(a, b, **rounding())`.
    """
    norm, projection, attention, mlp = 64, 64, 8 + 2 * 48, 64 + 96  # products in the sums of a layer; up to 48 tokens
    terms = layers * (2 * norm + 2 * projection + attention + mlp) + 64
    bound = 6 * math.sqrt(terms) * torch.finfo(dtype).eps
    return {"rtol": bound, "atol": bound * size}


@functools.cache
def tiny_llava(attention: str = "sdpa", layers: int = 6, dtype: torch.dtype = torch.float32) -> Any:
    """A random LLaVA with 16 visual tokens and grouped-query attention (8 query heads, 4 KV heads)."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.2,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=VISUAL)
    model = LlavaForConditionalGeneration(config).eval().to(dtype)
    model.set_attn_implementation(attention)
    return model


def prompts(*rows: tuple[int, int] | int, seed: int = 1) -> dict[str, Tensor]:
    """A left-padded batch. `(a, b)`: a text tokens, an image, b text tokens; a number: that many text tokens."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> Tensor:
        return torch.randint(2, 98, (count,), generator=generator)

    ids = []
    for row in rows:
        if isinstance(row, int):
            ids.append(words(row))
        else:
            ids.append(torch.cat([words(row[0]), torch.full((VISUAL,), IMAGE), words(row[1])]))
    width = max(map(len, ids))
    batch = torch.stack([torch.cat([torch.full((width - len(row),), PAD), row]) for row in ids])
    images = sum(not isinstance(row, int) for row in rows)
    pixels = torch.randn(images, 3, 16, 16, generator=generator) if images else None
    inputs = {"input_ids": batch, "attention_mask": (batch != PAD).long()}
    return inputs if pixels is None else inputs | {"pixel_values": pixels}


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    single = {"input_ids": inputs["input_ids"][row, real][None], "attention_mask": real[real].long()[None]}
    shown = (inputs["input_ids"] == IMAGE).any(1)
    if shown[row]:
        image = int(shown[:row].sum())
        single["pixel_values"] = inputs["pixel_values"][image : image + 1]
    return single


def vision_outputs(batch: int = 3, visual: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """Random encoded images of `visual` tokens, with everything that a vision-side method may read."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    features, projector = draw(batch, visual, 80), draw(80, 96)
    return fp.VisionOutputs(
        features=features,
        projected=features @ projector,
        cls_attention=draw(batch, 4, visual).float().softmax(-1),
        image_embeds=draw(batch, visual, 20),
        text_embeds=[draw(1 + row, 96) for row in range(batch)],
        keys=draw(batch, visual, 8),
        cls_projected=draw(batch, 1, 96),
        projector=lambda tokens: tokens @ projector,
    )


def one_image(vision: Any, row: int) -> Any:
    """One image of a batch."""
    parts = {name: value[row : row + 1] for name, value in vision.tensors().items() if name != "text_embeds"}
    return vision.replace(**parts, text_embeds=vision.text_embeds[row : row + 1])


def decoder_context(batch: int = 3, visual: int = 24, seed: int = 0, layer: int = 2) -> DecoderContext:
    """A random state before a drop: 8 heads, text of 3 to 5 words after the image."""
    generator = torch.Generator().manual_seed(seed)
    words = 5

    def attention(*shape: int) -> Tensor:
        return torch.randn(*shape, visual + 4, generator=generator).mul(2).softmax(-1)[..., :visual]

    present = torch.ones(batch, visual, dtype=torch.bool)
    shorter = torch.arange(words) >= torch.tensor([row % 3 for row in range(batch)])[:, None]
    return DecoderContext(
        layer,
        attention(batch, 8),
        present,
        next_attention=attention(batch, 8),
        text_attention=attention(batch, 8, words),
        text_present=shorter,
        prefix_lengths=torch.full((batch,), 4),
        hidden=torch.randn(batch, visual, 12, generator=generator),
        visual_embeds=torch.randn(batch, visual, 12, generator=generator),
        text_embeds=torch.randn(batch, words, 12, generator=generator),
    )


_SOURCES = ("next_attention", "text_attention", "text_present", "prefix_lengths", "hidden", "visual_embeds")


def one_row(context: DecoderContext, row: int) -> DecoderContext:
    """One row of a context."""
    sources = {name: getattr(context, name)[row : row + 1] for name in (*_SOURCES, "text_embeds")}
    attention, present = context.attention[row : row + 1], context.present[row : row + 1]
    return DecoderContext(context.layer, attention, present, context.count, **sources)


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
    """Refuses tensors on the host where everything that was given stands on a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, list | tuple) else (result,):
            if isinstance(made, Tensor) and made.device.type == "cpu" and made.ndim:
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
        there["text_embeds"] = [text.to("meta") for text in seen.text_embeds]
        there["projector"] = lambda tokens: tokens.new_empty(*tokens.shape[:-1], seen.projected.shape[-1])
        with no_host_sync(), _OneDevice():
            before.reduce(seen.replace(**there))
    if inside is not None:
        state = decoder_context(visual=visual)
        sources = {name: getattr(state, name).to("meta") for name in (*_SOURCES, "text_embeds")}
        required = torch.zeros_like(state.present, device="meta")
        context = DecoderContext(2, state.attention.to("meta"), required, visual, required, **sources)
        with no_host_sync(), _OneDevice():
            inside.select(context, visual // 2)


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


def build(name: str, **parameters: Any) -> Any:
    """The method with the parameters that the small model needs."""
    return build_pruner(name, **(_PARAMETERS.get(name, {}) | parameters))


def reachable(name: str, share: str | int, layers: int, visual: int) -> Any:
    """The method at a share of the tokens, or None if it says that it cannot reach it."""
    pruner = build(name, budget=share)
    try:
        pruner.schedule(layers, visual)
    except ValueError as error:
        assert str(error).startswith(("budget: ", "method: ")), error
        return None
    return pruner


def _some_budget(name: str, layers: int = 6, visual: int = VISUAL) -> Any:
    pruner = next(filter(None, (reachable(name, share, layers, visual) for share in ("50%", "75%", "100%"))))
    return pruner


# -- the checks -------------------------------------------------------------------------------------------------------


def check_documented(name: str, reference: Reference) -> None:
    """The class says what it keeps, its file where the method comes from."""
    cls = method_class(name)
    module = inspect.getmodule(cls)
    assert cls.__doc__ and "dataclass" not in cls.__doc__, f"{name}: the class has no docstring"
    assert module is not None and module.__doc__, f"{name}: its file has no docstring naming the source"


def check_schedule(name: str, reference: Reference) -> None:
    """The layers see the budget on average, in models of any depth and size, or the method says why not."""
    reached = 0
    for layers in (6, 8, 24, 32, 40, 80):
        for visual in (16, 144, 576, 2880):
            for share in ("75%", "50%", "25%", "6.25%"):
                pruner = reachable(name, share, layers, visual)
                if pruner is None:
                    continue
                reached += 1
                schedule = pruner.schedule(layers, visual)
                wanted = parse_budget(share).tokens(visual)
                assert len(schedule) == layers and schedule == sorted(schedule, reverse=True) and min(schedule) >= 0
                assert abs(Fraction(sum(schedule), layers) - wanted) <= max(Fraction(1), Fraction(visual, 200)), (
                    layers,
                    visual,
                )
            if whole := reachable(name, visual, layers, visual):
                assert whole.schedule(layers, visual) == [visual] * layers
    assert reached or method_class(name).side == "none"


def check_untouched(name: str, reference: Reference) -> None:
    """A budget of all tokens is the untouched model, bit for bit."""
    model, inputs = tiny_llava(), prompts((5, 7), 11)
    plain = model.generate(**inputs, return_dict_in_generate=True, **OPTIONS)
    for budget in (None, VISUAL, "100%"):
        result = fp.generate(model, build(name, budget=budget), inputs, **OPTIONS)
        assert torch.equal(torch.stack(plain.logits), torch.stack(result.logits or ()))


def check_batch(name: str, reference: Reference) -> None:
    """A row gets in a padded batch of any mix what it gets alone."""
    model, inputs, pruner = tiny_llava(), prompts((5, 7), 11, (2, 4), (8, 1)), _some_budget(name)
    together = fp.generate(model, pruner, inputs, **OPTIONS)
    for row in range(4):
        single = fp.generate(model, pruner, alone(inputs, row), **OPTIONS)
        for layer, kept in single.trace.kept.items():
            assert torch.equal(kept[0], together.trace.kept[layer][row])
        ours = torch.stack([step[row] for step in together.logits or ()])
        torch.testing.assert_close(ours, torch.stack([s[0] for s in single.logits or ()]), **rounding())


def check_lengths(name: str, reference: Reference) -> None:
    """What enters the layers is what the schedule says, in the trace and in the caches, and decoding drops no more."""
    model, inputs, pruner = tiny_llava(), prompts((5, 7), (5, 7), seed=3), _some_budget(name)
    trace = fp.generate(model, pruner, inputs, **OPTIONS).trace
    schedule = pruner.schedule(6, VISUAL)
    assert trace.tokens_entering == [schedule, schedule]
    assert trace.kv_lengths == [12 + tokens for tokens in schedule]


def check_repeatable(name: str, reference: Reference) -> None:
    """The same input gives the same answer, whatever was asked before."""
    model, inputs, pruner = tiny_llava(), prompts((5, 7), (2, 4)), _some_budget(name)
    first = fp.generate(model, pruner, inputs, **OPTIONS)
    fp.generate(model, pruner, prompts((9, 3), seed=5), **OPTIONS)
    again = fp.generate(model, build(name, budget=pruner.budget), inputs, **OPTIONS)
    assert torch.equal(torch.stack(first.logits or ()), torch.stack(again.logits or ()))


def check_precisions(name: str, reference: Reference) -> None:
    """Models in half and in double precision run, and their choices are finite."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        inputs, pruner = prompts((5, 7), (2, 4)), _some_budget(name)
        result = fp.generate(tiny_llava(dtype=dtype), pruner, inputs, **OPTIONS)
        assert all(bool(step.isfinite().all()) for step in result.logits or ())
        assert result.trace.tokens_entering == [pruner.schedule(6, VISUAL)] * 2


def check_no_host_sync(name: str, reference: Reference) -> None:
    """From the encoded image to the last layer of prefill, the host never waits for the device, and copies nothing."""
    model, inputs, pruner = tiny_llava(), prompts((5, 7), (2, 4)), _some_budget(name)
    choose_without_host_copy(pruner)
    before, _ = pruner.parts(VISUAL)
    if before is not None:
        with no_host_sync():
            before.reduce(vision_outputs(visual=VISUAL))
    with prefill_without_host_sync(model):
        fp.generate(model, pruner, inputs, **OPTIONS)


def check_degenerate(name: str, reference: Reference) -> None:
    """Tokens that are all alike, or zero, are chosen from without NaN, and as many as promised."""
    pruner = _some_budget(name, visual=64)
    if isinstance(pruner, VisionPruner):
        random = vision_outputs()
        same = {key: torch.ones_like(value) for key, value in random.tensors().items() if key != "text_embeds"}
        for outputs in (random.replace(**same), random.replace(**{k: torch.zeros_like(v) for k, v in same.items()})):
            reduced = pruner.reduce(outputs)
            assert reduced.tokens.shape[1] == pruner.retained(64) and bool(reduced.tokens.isfinite().all())
            assert len(set(reduced.keep.sum(1).tolist())) == 1
    elif isinstance(pruner, DecoderPruner):
        context = decoder_context()
        zero: dict[str, Any] = {
            name: torch.zeros_like(getattr(context, name)) for name in ("next_attention", "text_attention")
        }
        zero |= {name: torch.zeros_like(getattr(context, name)) for name in ("hidden", "visual_embeds", "text_embeds")}
        flat = DecoderContext(
            2,
            torch.full_like(context.attention, 1e-3),
            context.present,
            text_present=context.text_present,
            prefix_lengths=context.prefix_lengths,
            **zero,
        )
        chosen = pruner.select(flat, 7)
        assert chosen.keep.sum(1).tolist() == [7] * 3
        assert chosen.merged is None or bool(chosen.merged.isfinite().all())


def check_not_finite(name: str, reference: Reference) -> None:
    """NaN where a method looks is an error, not a choice."""
    model, pruner = tiny_llava(), _some_budget(name)
    if method_class(name).side == "none":
        return
    for bad in (float("nan"), float("inf")):
        if isinstance(pruner, VisionPruner):
            outputs = vision_outputs(visual=VISUAL)
            features = outputs.features.clone()
            features[1, 3, 0] = bad
            _raises(functools.partial(pruner.select_visual, outputs.replace(features=features)))
    inputs = prompts((5, 7))
    inputs["pixel_values"][0, 0, 0, 0] = float("nan")
    _raises(functools.partial(fp.generate, model, pruner, inputs, **OPTIONS))


def _raises(call: Callable[[], Any]) -> None:
    try:
        call()
    except ValueError as error:
        assert "NaN or infinite" in str(error), error
        return
    raise AssertionError("NaN was accepted")


def check_reference(name: str, reference: Reference) -> None:
    """The method keeps what its reference keeps: on random images and states, at several budgets."""
    cls = method_class(name)
    for seed in range(3):
        for share in ("75%", "50%", "25%", "6.25%"):
            if issubclass(cls, VisionPruner):
                pruner = reachable(name, share, 8, 64)
                if pruner is None:
                    continue
                outputs = vision_outputs(seed=seed)
                keep = pruner.select_visual(outputs)
                for row in range(3):
                    expected = reference(pruner, one_image(outputs, row), pruner.retained(64))
                    assert keep[row].nonzero().squeeze(1).tolist() == expected, (seed, share, row)
            elif issubclass(cls, DecoderPruner):
                pruner, context = build(name), decoder_context(seed=seed)
                retained = int(24 * parse_budget(share).tokens(100) / 100)
                keep = pruner.select(context, retained).keep
                for row in range(3):
                    expected = reference(pruner, one_row(context, row), retained)
                    assert keep[row].nonzero().squeeze(1).tolist() == expected, (seed, share, row)


CHECKS = (
    check_documented,
    check_schedule,
    check_untouched,
    check_batch,
    check_lengths,
    check_repeatable,
    check_precisions,
    check_no_host_sync,
    check_degenerate,
    check_not_finite,
    check_reference,
)
