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
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms.pruners import DecoderContext, build_pruner
from finepruner_lmms.pruners.budget import parse_budget
from finepruner_lmms.pruners.registry import pieces_of, takes_budget
from finepruner_lmms.testing.guards import (
    HostSync,
    choose_without_host_copy,
    no_host_sync,
    prefill_without_host_copy,
    prefill_without_host_sync,
)
from finepruner_lmms.testing.samples import (
    IMAGE,
    ON_SMALL_MODELS,
    PAD,
    SOURCES,
    VISUAL,
    alone,
    decoder_context,
    one_image,
    one_row,
    prompts,
    rounding,
    tiny_llava,
    vision_outputs,
)

__all__ = [
    "CHECKS",
    "IMAGE",
    "ON_SMALL_MODELS",
    "OPTIONS",
    "PAD",
    "VISUAL",
    "HostSync",
    "Reference",
    "alone",
    "build",
    "choose_without_host_copy",
    "decoder_context",
    "no_host_sync",
    "one_image",
    "one_row",
    "prefill_without_host_copy",
    "prefill_without_host_sync",
    "prompts",
    "reachable",
    "rounding",
    "tiny_llava",
    "vision_outputs",
]

Reference = Callable[[Any, Any, int], list[int]]
OPTIONS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}


def build(name: str, **parameters: Any) -> Any:
    """The method with the parameters that the small model needs, and without a budget where it takes none."""
    if not takes_budget(name):
        parameters.pop("budget", None)
    small = {key: value for part in name.split("+") for key, value in ON_SMALL_MODELS.get(part, {}).items()}
    return build_pruner(name, **(small | parameters))


def reachable(name: str, share: str | int, layers: int, visual: int) -> Any:
    """The method at a share of the tokens, or None if it says that it cannot reach it."""
    if not takes_budget(name):
        return None
    pruner = build(name, budget=share)
    try:
        pruner.schedule(layers, visual)
    except ValueError as error:
        assert str(error).startswith(("budget: ", "method: ")), error
        return None
    return pruner


def _some_budget(name: str, layers: int = 6, visual: int = VISUAL) -> Any:
    pruner = next(filter(None, (reachable(name, share, layers, visual) for share in ("50%", "75%", "100%"))), None)
    return build(name) if pruner is None else pruner


# -- the checks -------------------------------------------------------------------------------------------------------


def check_documented(name: str, reference: Reference) -> None:
    """The class says what it keeps, its file where the method comes from."""
    for cls in pieces_of(name):
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
    assert reached or build(name).side == "none" or build(name).schedule(32, 576) == [0] * 32


def check_untouched(name: str, reference: Reference) -> None:
    """A budget of all tokens is the untouched model, bit for bit."""
    if not takes_budget(name):
        return
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
    prefill_without_host_copy(pruner, (5, 7), 11, (2, 0))
    before, _ = pruner.parts(VISUAL)
    if before is not None:
        with no_host_sync():
            before.reduce(vision_outputs(visual=VISUAL))
    with prefill_without_host_sync(model):
        fp.generate(model, pruner, inputs, **OPTIONS)


def check_degenerate(name: str, reference: Reference) -> None:
    """Tokens that are all alike, or zero, are chosen from without NaN, and as many as promised."""
    before, inside = _some_budget(name, visual=64).parts(64)
    if before is not None:
        random = vision_outputs()
        same = {key: torch.ones_like(value) for key, value in random.tensors().items() if key != "text_embeds"}
        for outputs in (random.replace(**same), random.replace(**{k: torch.zeros_like(v) for k, v in same.items()})):
            reduced = before.reduce(outputs)
            assert reduced.tokens.shape[1] == before.retained(64) and bool(reduced.tokens.isfinite().all())
            assert len(set(reduced.keep.sum(1).tolist())) == 1
    if inside is not None:
        context = decoder_context()
        zero: dict[str, Any] = {
            name: torch.zeros_like(getattr(context, name))
            for name in (*SOURCES, "text_embeds")
            if name not in ("text_present", "prefix_lengths")
        }
        flat = DecoderContext(
            2,
            torch.full_like(context.attention, 1e-3),
            context.present,
            attention_in=lambda _: torch.full_like(context.attention, 1e-3),
            text_present=context.text_present,
            prefix_lengths=context.prefix_lengths,
            **zero,
        )
        chosen = inside.select(flat, 7)
        assert chosen.keep.sum(1).tolist() == [7] * 3
        assert chosen.merged is None or bool(chosen.merged.isfinite().all())


def check_not_finite(name: str, reference: Reference) -> None:
    """NaN where a method looks is an error, not a choice."""
    model, pruner = tiny_llava(), _some_budget(name)
    if build(name).side == "none":
        return
    before, _ = pruner.parts(VISUAL)
    for bad in (float("nan"), float("inf")):
        if before is not None:
            outputs = vision_outputs(visual=VISUAL)
            features = outputs.features.clone()
            features[1, 3, 0] = bad
            _raises(functools.partial(before.select_visual, outputs.replace(features=features)))
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
    """The method keeps what its reference keeps: on random images and states, at several budgets.

    Of a method with two halves, each is asked: the reference tells them apart by what it is given to see.
    """
    for seed, shares in enumerate((("75%", "25%"), ("50%", "6.25%"), ("75%", "6.25%"))):
        for share in shares:
            whole = reachable(name, share, 8, 64)
            before, _ = (None, None) if whole is None else whole.parts(64)
            if before is not None:
                outputs = vision_outputs(seed=seed)
                keep = before.select_visual(outputs)
                for row in range(3):
                    expected = reference(before, one_image(outputs, row), before.retained(64))
                    assert keep[row].nonzero().squeeze(1).tolist() == expected, (seed, share, row)
            _, inside = build(name).halves
            if inside is not None:
                context = decoder_context(seed=seed)
                retained = int(24 * parse_budget(share).tokens(100) / 100)
                keep = inside.select(context, retained).keep
                for row in range(3):
                    expected = reference(inside, one_row(context, row), retained)
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
