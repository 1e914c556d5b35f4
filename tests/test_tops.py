"""TOPS: its budget over three choices, what each choice weighs, and prompts that are not as usual."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import finepruner_lmms as fp
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners import DecoderContext
from finepruner_lmms.pruners.tops import TopsBefore, TopsInside, sum_of_shares
from finepruner_lmms.testing import choose_without_host_copy, decoder_context, prompts, tiny_llava, vision_outputs


def counts(budget, layers=32, visual=576, **parameters):
    schedule = fp.build_pruner("tops", budget=budget, **parameters).schedule(layers, visual)
    return {layer: schedule[layer] for layer in range(layers) if layer == 0 or schedule[layer] != schedule[layer - 1]}


def test_the_published_schedule_is_that_of_its_true_average():
    assert counts(76) == {0: 128, 12: 64, 24: 16}  # "64"
    assert counts(152) == {0: 256, 12: 128, 24: 32}  # "128"
    assert counts(76, layers=40) == {0: 128, 15: 64, 30: 16}


@pytest.mark.parametrize("layers", [32, 40, 28])
@pytest.mark.parametrize("budget", [192, 128, 64, 32, "22%"])
def test_the_budget_is_the_average_of_all_layers(budget, layers):
    schedule = fp.build_pruner("tops", budget=budget).schedule(layers, 576)
    wanted = Fraction(22 * 576, 100) if budget == "22%" else Fraction(budget)
    assert abs(Fraction(sum(schedule), layers) - wanted) <= Fraction(1, 8)


def test_at_64_it_is_exact():
    assert counts(64) == {0: 108, 12: 54, 24: 13} and sum(fp.build_pruner("tops", budget=64).schedule(32, 576)) == 2048


def test_large_budgets_drop_nothing_before_the_model():
    assert counts(400) == {0: 576, 12: 420, 24: 106}
    before, inside = fp.build_pruner("tops", budget=400).parts(576)
    assert before is None and inside is not None
    assert fp.build_pruner("tops", budget=1).schedule(32, 576) == [1] * 32
    with pytest.raises(ValueError, match="tops needs a decoder of 3 layers or more; this model has 2"):
        fp.build_pruner("tops", budget=64).schedule(2, 576)


def test_the_first_pick_is_the_most_relevant():
    vision, context = vision_outputs(), decoder_context()
    assert torch.equal(TopsBefore(budget=1).select_visual(vision), top_mask(vision.cls_attention.mean(1), 1))
    keep = TopsInside().select(context, 1).keep
    words = context.text_present[:, None, :, None]
    relevance = (context.text_attention * words).sum((1, 2))
    assert torch.equal(keep, top_mask(relevance, 1))


def test_each_weight_has_its_say():
    context = decoder_context(visual=40)
    relevance = (context.text_attention * context.text_present[:, None, :, None]).sum((1, 2))
    plain = TopsInside(alpha=0, coverage=0).select(context, 9).keep
    assert torch.equal(plain, top_mask(relevance, 9))
    others = [TopsInside(alpha=a, coverage=c).select(context, 9).keep for a, c in ((5, 0), (0, 5), (5, 5))]
    assert len({tuple(keep.flatten().tolist()) for keep in (plain, *others)}) == 4


def test_parts_are_compared_by_their_mean_over_what_is_left():
    left = torch.tensor([[True, True, True, False]])
    found = sum_of_shares(left, (2.0, torch.tensor([[1.0, 2, 3, 90]])), (1.0, torch.zeros(1, 4)))
    assert found[0, :3].tolist() == [1, 2, 3]


def context_with(present: torch.Tensor, required: torch.Tensor | None, words: torch.Tensor) -> DecoderContext:
    whole = decoder_context()
    return DecoderContext(
        12,
        whole.attention * present[:, None],
        present,
        required=required,
        text_attention=whole.text_attention,
        text_present=words,
        hidden=whole.hidden,
    )


def test_only_what_is_there_is_chosen_and_what_a_prompt_ends_with_stays():
    whole = decoder_context()
    present = torch.ones(3, 24, dtype=torch.bool)
    present[0, ::2] = False  # dropped before
    present[1] = False  # a row without an image
    required = torch.zeros_like(present)
    required[2, 22] = True
    pruner = TopsInside()
    kept = pruner.select(context_with(present, required, whole.text_present), 6).keep
    assert kept.sum(1).tolist() == [6, 0, 6] and not bool((kept & ~present).any()) and bool(kept[2, 22])
    without = pruner.select(context_with(present, None, whole.text_present), 6).keep
    assert int((without[2] & ~kept[2]).sum()) == 1  # the last pick made place
    five = pruner.select(context_with(present, None, whole.text_present), 5).keep
    assert torch.equal(kept[2], five[2] | required[2])
    # the dropped ones are no targets either
    other = decoder_context().hidden.clone()
    other[0, ::2] = 7.0
    again = context_with(present, None, whole.text_present)
    again._sources["hidden"] = other
    assert torch.equal(pruner.select(again, 6).keep[0], without[0])


def test_without_words_the_last_of_the_prompt_rates():
    whole, none = decoder_context(), torch.zeros(3, 5, dtype=torch.bool)
    present = torch.ones(3, 24, dtype=torch.bool)
    found = TopsInside(alpha=0, coverage=0).select(context_with(present, None, none), 4).keep
    assert torch.equal(found, top_mask(whole.text_attention[:, :, -1].sum(1), 4))
    no_text = DecoderContext(
        12, whole.attention, present, text_present=none[:, :0], text_attention=whole.text_attention[:, :, :0],
        hidden=whole.hidden,
    )  # fmt: skip
    found = TopsInside(alpha=0, coverage=0).select(no_text, 4).keep
    assert torch.equal(found, top_mask(whole.attention.sum(1), 4))


def test_it_runs_as_a_whole_and_numbers_tokens_anew():
    pruner, inputs = fp.build_pruner("tops", budget=6, importance="norm"), prompts((5, 7), 9, (4, 0))
    trace = fp.generate(tiny_llava(), pruner, inputs, max_new_tokens=2, do_sample=False).trace
    assert trace.tokens_entering[0] == trace.tokens_entering[2] == pruner.schedule(6, 16)
    assert sorted(trace.kept) == [0, 2, 5]
    inner = [set(trace.kept[layer][0].tolist()) for layer in (0, 2, 5)]
    assert inner[0] > inner[1] > inner[2]
    choose_without_host_copy(pruner)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"alpha": -0.5}, "alpha: got -0.5; expected a number of at least 0"),
        ({"coverage": "much"}, "coverage: got 'much'"),
        ({"importance": "rank"}, "importance: got 'rank'"),
        ({"layer": 2}, "layer: method 'tops' does not read it"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner("tops", budget=64, **parameters)
