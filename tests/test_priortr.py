"""PriorTR: what the question adds to the attention of a word that has not read it."""

from __future__ import annotations

import math

import pytest
import torch
from brute_force import best
from conftest import VISUAL, alone, prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.pruners.priortr import divergence
from finepruner_lmms.testing import decoder_context


def test_the_schedule_is_three_full_layers():
    found = fp.build_pruner("priortr", budget=64).schedule(32, 576)
    assert found == [576] * 3 + [11] * 29
    assert fp.build_pruner("priortr", budget=112).schedule(32, 576)[3] == 64  # what the paper calls 64


@pytest.mark.parametrize("query", ["text_tokens_only", "last"])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_in_a_model_it_keeps_what_the_formula_says(query, aggregate):
    """From the model's own eager attention: the row of the first word, and those of all words or of the last one."""
    model, inputs = tiny_llava("eager"), prompts((5, 7), 11, (2, 4))
    pruner = fp.build_pruner("priortr", budget="75%", query=query, aggregate=aggregate)
    trace = fp.generate(model, pruner, inputs, max_new_tokens=1).trace
    for row, start in ((0, 5), (2, 2)):
        eager = model(**alone(inputs, row), output_attentions=True).attentions[2][0].double()
        rows = eager[:, start + VISUAL :, start : start + VISUAL]
        asked = rows[:, -1] if query == "last" else rows.mean(1)
        p, q = (one.amax(0) if aggregate == "max" else one.mean(0) for one in (asked, rows[:, 0]))
        p, q = p / p.sum(), q / q.sum()
        pairs = zip(p.tolist(), q.tolist(), strict=True)
        scores = torch.tensor([a * math.log((a + 1e-10) / (b + 1e-10)) for a, b in pairs])
        kept = trace.kept[3][row].tolist()
        assert kept == best(scores, list(range(VISUAL)), len(kept)) and 0 < len(kept) < VISUAL


def test_a_question_that_changes_nothing_leaves_the_order_of_the_tokens():
    same = torch.rand(2, 9, dtype=torch.float64)
    assert divergence(same, same).tolist() == [[0.0] * 9] * 2
    context = decoder_context()
    context._sources["text_present"] = torch.arange(5).expand(3, -1) == 4  # a single word is its own prior
    assert fp.build_pruner("priortr").select(context, 3).keep.nonzero()[:, 1].tolist() == [0, 1, 2] * 3


def test_the_prior_does_not_see_the_question():
    """Other words after the first one: the same prior, another choice."""
    context, pruner = decoder_context(), fp.build_pruner("priortr")
    prior, asked = pruner._rows(context)
    changed = decoder_context()
    rows = changed.text_attention.clone()
    rows[:, :, 3:] = rows[:, :, 3:].flip(-1)
    changed._sources["text_attention"] = rows
    other, differently = pruner._rows(changed)
    assert torch.equal(prior, other) and not torch.equal(asked, differently)


def test_without_text_the_last_token_alone_decides():
    context = decoder_context()
    for words in (torch.zeros(3, 5, dtype=torch.bool), torch.zeros(3, 0, dtype=torch.bool)):
        context._sources["text_present"] = words
        kept = fp.build_pruner("priortr").select(context, 9).keep
        assert torch.equal(kept, fp.build_pruner("fastv").select(context, 9).keep)


@pytest.mark.parametrize("parameters", [{"layer": 0}, {"layer": None}, {"query": "nobody"}, {"aggregate": "quota"}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        fp.build_pruner("priortr", budget=64, **parameters)
