"""Prefill and decode on fixed buffers: the answers are those of transformers' own loop. Uncaptured, in float32."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

import finepruner_lmms as fp
from finepruner_lmms.engine.fixed.capture import Replay
from finepruner_lmms.engine.fixed.programs import MOST, Programs, programs_of
from finepruner_lmms.engine.fixed.shape import LENGTH_STEP, LONGEST, rows_for
from finepruner_lmms.engine.fixed.vision import vision_programs
from finepruner_lmms.engine.generate import say_once
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.registry import known_methods, needs_budget
from finepruner_lmms.testing import IMAGE, ON_SMALL_MODELS, PAD, VISUAL, rounding, tiny_llava, vision_outputs

STEPS = {"max_new_tokens": 32, "do_sample": False, "output_logits": True}
MIXES: dict[str, list[tuple[bool, int, int]]] = {  # per row: whether it shows an image, words, and those before it
    "one": [(True, 7, 3)],
    "ragged": [(True, 7, 3), (True, 4, 2), (True, 12, 5)],
    "with text": [(True, 7, 3), (False, 9, 0), (True, 3, 1)],
    "with a long text": [(True, 7, 3), (False, 30, 0)],
    "ending with the image": [(True, 5, 5), (True, 7, 3)],
    "text alone": [(False, 5, 0), (False, 8, 0)],
    "a whole bucket": [(True, 16, 3), (True, 16, 5)],
}
METHODS: list[tuple[str, dict[str, Any]]] = [
    *((name, ON_SMALL_MODELS.get(name, {})) for name in known_methods()),
    ("divprune+fastv", {"first": 12}),
    ("fastv+coordinates", {}),
    ("uniform+restore+fastv+merge+random_tail", {"first": 12, "tail": 0.5}),
    ("fastv", {"positions": "renumbered"}),
    ("sparsevlm", {"positions": "renumbered"}),
    ("finepruner", {"head_strategy": "consensus"}),
    ("finepruner", {"guide": "pdrop", "heads": 3, "query": "adaptive_by_length"}),
    ("finepruner", {"guide": "sparsevlm", "heads": 2, "head_strategy": "graph_based"}),
    ("pdrop", {"variant": "official"}),
]


def prompts(mix: str) -> dict[str, torch.Tensor]:
    """A left-padded batch of random words, with an image per row that shows one."""
    draw, rows = torch.Generator().manual_seed(len(mix)), []
    for shown, count, before in MIXES[mix]:
        words = torch.randint(2, 90, (count,), generator=draw).tolist()
        rows.append([*words[:before], *([IMAGE] * VISUAL if shown else []), *words[before:]])
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
    if images := sum(shown for shown, _, _ in MIXES[mix]):
        inputs["pixel_values"] = torch.randn(images, 3, 16, 16, generator=draw)
    return inputs


def both(pruner: fp.Pruner, inputs: dict[str, Any], model: Any = None, **more: Any) -> tuple[Any, Any]:
    """The same call in both ways."""
    model, options = model or tiny_llava(), STEPS | more
    return tuple(fp.generate(model, pruner, inputs, execution=how, **options) for how in ("eager", "graphs"))  # type: ignore[return-value]


def assert_same(eager: Any, fixed: Any) -> None:
    """Tokens, logits and trace of two generations."""
    assert (eager.execution, fixed.execution) == ("eager", "graphs")
    assert torch.equal(eager.sequences, fixed.sequences)
    for one, other in zip(eager.logits or (), fixed.logits or (), strict=True):
        torch.testing.assert_close(one, other, **rounding(size=float(one.abs().max())))
    a, b = eager.trace, fixed.trace
    assert (a.has_image, a.kv_lengths, a.tokens_entering) == (b.has_image, b.kv_lengths, b.tokens_entering)
    assert a.kept.keys() == b.kept.keys()
    for layer, rows in a.kept.items():
        assert all(torch.equal(one, other) for one, other in zip(rows, b.kept[layer], strict=True))
    assert (a.guides.keys(), a.merge_masks.keys()) == (b.guides.keys(), b.merge_masks.keys())
    shown = torch.tensor(a.has_image)
    for layer, guides in a.guides.items():
        torch.testing.assert_close(guides[shown], b.guides[layer][shown], **rounding(size=float(guides.abs().max())))
    for layer, merged in a.merge_masks.items():
        assert torch.equal(merged[shown], b.merge_masks[layer][shown])
    assert a.chosen_heads.keys() == b.chosen_heads.keys()
    for layer, (heads, _) in a.chosen_heads.items():
        shown = torch.tensor(a.has_image)  # without an image there is nothing that heads could be chosen by
        assert torch.equal(heads[shown], b.chosen_heads[layer][0][shown])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("method", "parameters"), METHODS, ids=lambda value: str(value))
def test_answers_equal_those_of_generate(method: str, parameters: dict[str, Any], mix: str) -> None:
    budget = {"budget": 8} if needs_budget(method) else {}
    assert_same(*both(fp.build_pruner(method, **budget, **parameters), prompts(mix)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_implementations(attention: str) -> None:
    assert_same(*both(fp.build_pruner("fastv", budget=6), prompts("ragged"), tiny_llava(attention)))


@pytest.mark.parametrize("padding", [None, 0, 7])
def test_rows_that_end_early_are_filled(padding: int | None) -> None:
    pruner, inputs = fp.build_pruner("fastv", budget=8), prompts("ragged")
    free, _ = both(pruner, inputs)
    # tokens that one row says early, and another later or never
    ends = [int(free.sequences[0, 2]), int(free.sequences[1, 5])]
    eager, fixed = both(pruner, inputs, eos_token_id=ends, pad_token_id=padding)
    assert_same(eager, fixed)
    assert eager.sequences[0, 3:].unique().numel() <= 1, "the first row did not end early, so this shows nothing"


def test_the_answer_stops_when_all_rows_have_ended() -> None:
    pruner, inputs = fp.build_pruner("vanilla"), prompts("one")
    free, _ = both(pruner, inputs)
    eager, fixed = both(pruner, inputs, eos_token_id=int(free.sequences[0, 4]), pad_token_id=PAD)
    assert fixed.sequences.shape[1] <= 5
    assert_same(eager, fixed)


def test_one_token_and_logits_that_nobody_asked_for() -> None:
    eager, fixed = both(fp.build_pruner("fastv", budget=8), prompts("ragged"), max_new_tokens=1, output_logits=False)
    assert torch.equal(eager.sequences, fixed.sequences)
    assert fixed.logits is None


def test_batches_of_equal_shape_share_programs_and_leave_nothing_behind() -> None:
    model, pruner = tiny_llava(layers=4), fp.build_pruner("pdrop", budget=8)
    first, second = prompts("ragged"), prompts("with text")
    alone = fp.generate(model, pruner, second, execution="eager", **STEPS)
    programs = programs_of(model)
    for inputs in (first, second, first, second):
        fixed = fp.generate(model, pruner, inputs, execution="graphs", **STEPS)
    assert_same(alone, fixed)
    made = programs.made
    fp.generate(model, pruner, first, execution="graphs", **STEPS)
    assert programs.made == made, "a shape that was seen before was made again"


def test_nan_of_one_batch_does_not_reach_the_next() -> None:
    model, pruner, inputs = tiny_llava(layers=3), fp.build_pruner("vanilla"), prompts("one")
    good, _ = both(pruner, inputs, model)
    broken = inputs | {"pixel_values": torch.full_like(inputs["pixel_values"], float("nan"))}
    fp.generate(model, pruner, broken, execution="graphs", **STEPS)
    assert_same(good, fp.generate(model, pruner, inputs, execution="graphs", **STEPS))


def test_scores_that_are_not_finite_are_an_error_as_in_the_other_way() -> None:
    inputs = prompts("one")
    inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], float("nan"))
    for how in ("eager", "graphs"):
        with pytest.raises(FieldError, match="token scores of 'fastv'"):
            fp.generate(tiny_llava(), fp.build_pruner("fastv", budget=8), inputs, execution=how, **STEPS)


def test_weights_that_move_are_noticed() -> None:
    model, pruner, inputs = tiny_llava(layers=3), fp.build_pruner("fastv", budget=12), prompts("one")
    fp.generate(model, pruner, inputs, execution="graphs", **STEPS)
    made = programs_of(model).made
    head = model.lm_head.weight
    model.lm_head.weight = nn.Parameter(head.detach() * -1)
    try:
        eager, fixed = both(pruner, inputs, model)
    finally:
        model.lm_head.weight = head
    assert_same(eager, fixed)
    assert programs_of(model).made > made


def test_only_so_many_programs_are_kept() -> None:
    model, pruner, programs = tiny_llava(layers=3), fp.build_pruner("vanilla"), None
    for extra in range(MOST):
        inputs = {"input_ids": torch.randint(2, 90, (1, 4 + extra * LENGTH_STEP))}
        fp.generate(model, pruner, inputs, execution="graphs", max_new_tokens=1, pad_token_id=PAD)
    programs = programs_of(model)
    assert isinstance(programs, Programs)
    assert programs.made > programs.kept
    assert programs.kept <= MOST


def test_threads_take_turns() -> None:
    model, pruner = tiny_llava(layers=3), fp.build_pruner("fastv", budget=12)
    inputs = [prompts(mix) for mix in ("one", "ragged", "with text")]
    expected = [fp.generate(model, pruner, one, execution="eager", **STEPS).sequences for one in inputs]
    found: dict[int, torch.Tensor] = {}

    def ask(number: int) -> None:
        found[number] = fp.generate(model, pruner, inputs[number % 3], execution="graphs", **STEPS).sequences

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], expected[number % 3]) for number in range(6))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"do_sample": True}, "drawn at random"),
        ({"repetition_penalty": 1.3}, "repetition_penalty=1.3"),
        ({"min_new_tokens": 3}, "min_new_tokens=3"),
        ({"stopping_criteria": []}, "stopping_criteria"),
        ({"max_new_tokens": LONGEST}, f"more than {LONGEST} tokens"),
        ({"max_new_tokens": None, "max_length": 30}, "max_new_tokens is not given"),
        ({"generation_config": GenerationConfig(no_repeat_ngram_size=2)}, "no_repeat_ngram_size=2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_run_on_fixed_buffers_runs_eagerly_and_says_why_once(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    model, inputs = tiny_llava(layers=3), prompts("ragged")
    inputs["attention_mask"][:] = inputs["attention_mask"]  # the caller's own, which must stay as it is
    settings = {"max_new_tokens": 4, "eos_token_id": 1, "pad_token_id": PAD} | options
    if settings["max_new_tokens"] == LONGEST:
        settings["eos_token_id"] = list(range(100))  # whatever comes first ends the answer
    if "generation_config" in settings:
        settings["generation_config"].update(max_new_tokens=4, pad_token_id=PAD, eos_token_id=1)
        settings = {"generation_config": settings["generation_config"]}
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, logger="finepruner_lmms"):
        eager = fp.generate(model, fp.build_pruner("fastv", budget=12), inputs, execution="eager", **settings)
        torch.manual_seed(0)
        assert not [record for record in caplog.records if record.name == "finepruner_lmms"]
        one = fp.generate(model, fp.build_pruner("fastv", budget=12), inputs, execution="graphs", **settings)
        fp.generate(model, fp.build_pruner("fastv", budget=12), inputs, execution="graphs", **settings)
    assert one.execution == "eager"
    if not settings.get("do_sample"):
        assert torch.equal(one.sequences, eager.sequences)
    said = [record.message for record in caplog.records if record.name == "finepruner_lmms"]
    assert [reason in text for text in said] == [True]


def test_hooks_and_autocast_run_eagerly() -> None:
    model, pruner, inputs = tiny_llava(layers=3), fp.build_pruner("fastv", budget=12), prompts("one")
    hook = model.model.language_model.layers[1].register_forward_hook(lambda *_: None)
    try:
        assert fp.generate(model, pruner, inputs, execution="graphs", **STEPS).execution == "eager"
    finally:
        hook.remove()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fp.generate(model, pruner, inputs, execution="graphs", **STEPS).execution == "eager"
    assert fp.generate(model, pruner, inputs, execution="graphs", **STEPS).execution == "graphs"


def test_hooks_that_transformers_leaves_behind_are_no_reason() -> None:
    model = tiny_llava(layers=3)
    pixels = prompts("one")["pixel_values"]
    fp.encode_images(model, pixels)  # asks the tower for hidden states
    assert any(module._forward_hooks for module in model.model.vision_tower.modules())
    programs = vision_programs(model)
    assert programs.usable()
    hook = model.model.vision_tower.register_forward_hook(lambda *_: None)
    try:
        assert not programs.usable()
    finally:
        hook.remove()


def test_images_of_a_recording_are_in_memory_of_their_own() -> None:
    model, programs = tiny_llava(), vision_programs(tiny_llava())
    one, other = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    first = programs.encode(one)
    programs.encode(other)
    for name, value in fp.encode_images(model, one).tensors().items():
        assert torch.equal(first.tensors()[name], value), name


def test_images_that_fill_other_grids_have_a_recording_of_their_own() -> None:
    programs, before = vision_programs(tiny_llava()), fp.build_pruner("hiprune", budget=8, alpha=1.0, tower_layer=1)
    square = vision_outputs(1, 64)
    halves = square.replace(tiled=True, sheets=((1, 4, 8), (1, 8, 4)))
    for vision in (square, halves, square):
        assert torch.equal(programs.reduce(before, vision).keep, before.select_visual(vision))
    assert not torch.equal(before.select_visual(square), before.select_visual(halves))


def test_a_model_that_nobody_uses_any_more_is_not_held() -> None:
    model = tiny_llava.__wrapped__(layers=3)
    for method in ("fastv", "divprune"):
        fp.generate(model, fp.build_pruner(method, budget=12), prompts("one"), execution="graphs", **STEPS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_auto_is_eager_without_a_gpu_and_other_words_are_refused() -> None:
    pruner, inputs = fp.build_pruner("vanilla"), prompts("one")
    assert fp.generate(tiny_llava(), pruner, inputs, **STEPS).execution == "eager"
    with pytest.raises(FieldError, match="execution"):
        fp.generate(tiny_llava(), pruner, inputs, execution="fast", **STEPS)


def test_the_first_token_is_timed_in_both_ways() -> None:
    for one in both(fp.build_pruner("fastv", budget=12), prompts("one")):
        assert 0 < one.seconds_to_first_token < 60


def test_rows_are_rounded_up_little() -> None:
    assert [rows_for(n) for n in (1, 2, 3, 5, 16, 17, 24, 25, 32, 33, 48)] == [1, 2, 4, 8, 16, 24, 24, 32, 32, 48, 48]


def test_a_replay_without_a_gpu_is_the_function() -> None:
    calls = []
    replay = Replay(lambda: calls.append(1), torch.device("cpu"))
    replay()
    replay()
    assert calls == [1, 1]


def test_buffers_that_do_not_fit_are_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    model, pruner, inputs = tiny_llava(layers=3), fp.build_pruner("divprune", budget=12), prompts("ragged")
    eager = fp.generate(model, pruner, inputs, execution="eager", **STEPS)
    monkeypatch.setattr("finepruner_lmms.engine.fixed.programs.Storage.grow", full)
    programs_of(model).clear()
    monkeypatch.setattr("finepruner_lmms.engine.fixed.programs.Storage.holds", lambda *_: False)
    with caplog.at_level(logging.WARNING, logger="finepruner_lmms"):
        given_up = fp.generate(model, pruner, inputs, execution="graphs", **STEPS)
    assert given_up.execution == "eager"
    assert torch.equal(given_up.sequences, eager.sequences)
    assert "do not fit into the memory" in caplog.text
