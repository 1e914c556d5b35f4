"""Methods that answer together answer as they do one after the other."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import finepruner_lmms as fp
from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.engine.fan_out.memory import predicted_bytes
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import METHODS
from finepruner_lmms.pruners.fastv import FastV
from finepruner_lmms.testing import VISUAL, prompts, reachable, tiny_llava

LAYERS = 6


def everything(layers: int = LAYERS, shares: tuple[str, ...] = ("50%", "75%")) -> list:
    """Every method at so many budgets, as far as this model reaches them, some with correctors, and vanilla."""
    found = [reachable(name, share, layers, VISUAL) for name in METHODS for share in shares]
    found += [fp.build_pruner(name, budget=8) for name in ("fastv+coordinates", "fastv+restore", "uniform+merge")]
    found.append(fp.build_pruner("uniform+fastv+merge+random_tail", budget=8, first=12, tail=0.5))
    return [pruner for pruner in found if pruner is not None] + [fp.build_pruner("vanilla")]


def assert_same(model, pruners, inputs, **options):
    """Together as apart: tokens, kept tokens, lengths and chosen heads."""
    together = answer_together(model, pruners, inputs, **options)
    for pruner, ours in zip(pruners, together.outcomes, strict=True):
        assert isinstance(ours, fp.Generation), (pruner, ours)
        alone = fp.generate(model, pruner, inputs, do_sample=False, **options)
        assert torch.equal(ours.sequences, alone.sequences), pruner
        assert ours.trace.tokens_entering == alone.trace.tokens_entering, pruner
        assert ours.trace.kv_lengths == alone.trace.kv_lengths, pruner
        assert ours.trace.kept.keys() == alone.trace.kept.keys(), pruner
        for layer, rows in alone.trace.kept.items():
            assert all(map(torch.equal, rows, ours.trace.kept[layer])), (pruner, layer)
        for layer, (heads, _) in alone.trace.chosen_heads.items():
            assert torch.equal(heads, ours.trace.chosen_heads[layer][0]), (pruner, layer)
    return together


@pytest.mark.parametrize(
    "rows",
    [((5, 7),), ((5, 7), (5, 7)), ((5, 7), 11, (2, 4), (8, 1)), (4, 9), ((3, 0), (6, 2), 5)],
    ids=["one", "even", "mixed", "text", "ends_with_image"],
)
def test_every_method_answers_together_as_alone(rows):
    assert_same(tiny_llava(), everything(), prompts(*rows), max_new_tokens=8)


def test_long_answers_stay_the_same():
    assert_same(tiny_llava(), everything(shares=("75%",)), prompts((5, 7), 11, (2, 4)), max_new_tokens=32)


def test_rows_end_where_they_end_alone():
    ends = list(range(2, 98, 4))
    options = {"max_new_tokens": 24, "eos_token_id": ends, "pad_token_id": 0}
    methods = everything(shares=("75%",))
    together = assert_same(tiny_llava(), methods, prompts((5, 7), 11, (2, 4), (8, 1)), **options)
    lengths = {
        next((place for place, token in enumerate(row) if token in ends), 24)
        for outcome in together.outcomes
        for row in outcome.sequences.tolist()
    }
    assert len(lengths) > 4, "rows were to end at different steps"


def test_eager_attention_answers_the_same():
    assert_same(tiny_llava("eager"), everything(shares=("50%",)), prompts((5, 7), 11, (2, 4)), max_new_tokens=6)


def heads_study(budgets=("50%", "75%")) -> list:
    """The head strategies at several numbers of heads."""
    return [
        fp.build_pruner("finepruner", budget=budget, head_strategy=strategy, heads=heads)
        for budget in budgets
        for strategy in fp.HEAD_STRATEGIES
        for heads in (2, 4, 8)
    ]


def test_equal_choices_are_one_row():
    pruners = heads_study()
    together = assert_same(tiny_llava(), pruners, prompts((5, 7), 11, (2, 4)), max_new_tokens=6)
    assert together.asked == 3 * len(pruners)
    distinct = {
        (row, pruner.budget, tuple(kept[row].tolist()))
        for pruner, outcome in zip(pruners, together.outcomes, strict=True)
        for kept in outcome.trace.kept.values()
        for row in range(3)
    }
    assert together.rows == len(distinct) < together.asked


def test_methods_that_drop_several_times_share_rows_as_long_as_they_agree():
    guided = [
        fp.build_pruner("finepruner", budget="60%", guide=guide, head_strategy=strategy, heads=heads)
        for guide in ("pdrop", "sparsevlm")
        for strategy in ("sum", "max_attention", "variance")
        for heads in (4, 8)
    ]
    twice = [*guided, *guided]  # the same again costs nothing, but for new tokens that a method makes
    together = assert_same(tiny_llava(), twice, prompts((5, 7), 11, (2, 4)), max_new_tokens=6)
    assert together.rows < together.asked


@dataclass(frozen=True, kw_only=True)
class _Broken(FastV):
    """Raises when it is to choose."""

    name = "broken"

    def select(self, context, retained):
        raise ZeroDivisionError("this method cannot choose")


def test_a_method_that_raises_fails_alone():
    broken = _Broken(budget="75%")
    beyond = fp.build_pruner("finepruner", budget="75%", heads=64)
    nothing = fp.build_pruner("fastv", budget=1)
    pruners = [fp.build_pruner("fastv", budget="75%"), broken, beyond, nothing, fp.build_pruner("vanilla")]
    inputs = prompts((5, 7), 11)
    outcomes = answer_together(tiny_llava(), pruners, inputs, max_new_tokens=4).outcomes
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert [str(outcome).partition(":")[0] for outcome in outcomes[2:4]] == ["heads", "budget"]
    for place in (0, 4):
        alone = fp.generate(tiny_llava(), pruners[place], inputs, max_new_tokens=4)
        assert torch.equal(outcomes[place].sequences, alone.sequences)


def test_pictures_that_are_not_numbers_fail_the_methods_that_look_at_them():
    inputs = prompts((5, 7))
    inputs["pixel_values"][0, 0, 0, 0] = float("nan")
    pruners = [fp.build_pruner("fastv", budget="75%"), fp.build_pruner("divprune", budget="50%")]
    for outcome in answer_together(tiny_llava(), pruners, inputs, max_new_tokens=2).outcomes:
        assert "NaN or infinite" in str(outcome)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"do_sample": True}, "drawn at random"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"output_logits": True}, "logits of several"),
    ],
)
def test_what_is_not_plain_greedy_decoding_is_refused(options, reason):
    with pytest.raises(FieldError, match=reason):
        answer_together(tiny_llava(), [fp.build_pruner("vanilla")], prompts((5, 7)), max_new_tokens=2, **options)


@functools.cache
def wide_llava():
    """A random LLaVA in which keys and values weigh as in a real one: 144 visual tokens, 8 layers of width 256."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=499, image_seq_length=144)
    return LlavaForConditionalGeneration(config).eval()


def most_bytes(call) -> int:
    """The most that PyTorch held at a time of what `call` allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _build(name: str, **parameters):
    return fp.build_pruner(name, **parameters)


MEMORY = {
    "vision": [_build("random", budget=budget, seed=seed) for budget in (48, 24) for seed in range(8)],
    "mixed": [_build("vanilla"), *(_build("random", budget=48, seed=seed) for seed in range(6))]
    + [_build("fastv", budget=budget) for budget in (64, 72, 80)]
    + [_build("pdrop", budget=budget) for budget in (72, 64)],
    "heads": [
        _build("finepruner", budget=budget, heads=heads, head_strategy=strategy)
        for budget in (72, 60)
        for heads in (1, 2, 4)
        for strategy in ("sum", "variance", "max_attention")
    ],
}


@pytest.mark.parametrize("new", [8, 20])
@pytest.mark.parametrize("which", MEMORY)
def test_memory_is_predicted_within_15_percent(which, new):
    model, pruners = wide_llava(), MEMORY[which]
    words = torch.randint(2, 90, (4, 24), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([words[:, :5], torch.full((4, 144), 499), words[:, 5:]], dim=1)
    vision = fp.encode_images(model, torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "vision": vision}
    found = []
    measured = most_bytes(lambda: found.append(answer_together(model, pruners, inputs, max_new_tokens=new)))
    share = found[0].rows / found[0].asked
    asked = {"questions": 4, "words": 24, "max_new_tokens": new, "element_bytes": 4}
    assert 0.85 <= predicted_bytes(model.config, pruners, distinct=share, **asked) / measured <= 1.15
    assert predicted_bytes(model.config, pruners, **asked) >= 0.85 * measured  # when nothing is known of equal rows
