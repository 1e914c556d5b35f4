"""VisualHeads: its budget over two choices, what each switch does, and prompts that are not as usual."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import references
import torch

import finepruner_lmms as fp
from finepruner_lmms.heads import relevance
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.ops.selection import top_mask
from finepruner_lmms.pruners import DecoderContext
from finepruner_lmms.pruners.listening import VisualHeadsInside
from finepruner_lmms.testing import (
    SOURCES,
    choose_without_host_copy,
    decoder_context,
    prefill_without_host_sync,
    prompts,
    tiny_llava,
    vision_outputs,
)

ROOT = Path(__file__).parents[1]
LOUD: dict[str, Any] = {
    "heads": 3,
    "contrast": "gain",
    "measure": "output",
    "sinks": "keep",
    "aggregate": "quota",
    "candidates": 0.5,
    "targets": 0.5,
}


def changed(context: DecoderContext, **sources: Any) -> DecoderContext:
    """The same context, but for `sources`."""
    names = (*SOURCES, "attention", "present", "required")
    same = {name: getattr(context, name) for name in names} | sources
    return DecoderContext(context.layer, same.pop("attention"), same.pop("present"), **same)


def kept(context: DecoderContext, retained: int = 7, **switches: Any) -> list[list[int]]:
    keep = VisualHeadsInside(**switches).select(context, retained).keep
    return [row.nonzero().squeeze(1).tolist() for row in keep]


@pytest.mark.parametrize("layers", [32, 40])
@pytest.mark.parametrize(
    "budget, counts", [(192, (379, 144, 37)), (128, (252, 98, 24)), (64, (126, 49, 12)), (32, (63, 23, 7))]
)
def test_the_budget_is_the_average_of_all_layers_exactly(budget, counts, layers):
    schedule = fp.build_pruner("visualheads", budget=budget).schedule(layers, 576)
    assert sum(schedule) == budget * layers and sorted(set(schedule), reverse=True) == list(counts)
    assert [schedule.index(count) for count in counts] == [0, layers * 3 // 8, layers * 5 // 8]


@pytest.mark.parametrize("layers", [32, 40])
@pytest.mark.parametrize("budget, counts", [(192, (312, 120)), (128, (208, 80)), (64, (104, 40)), (32, (52, 20))])
def test_without_a_tail_there_is_one_drop_and_the_average_is_the_same(budget, counts, layers):
    schedule = fp.build_pruner("visualheads", budget=budget, tail=1).schedule(layers, 576)
    assert sum(schedule) == budget * layers and sorted(set(schedule), reverse=True) == list(counts)
    assert schedule.index(counts[1]) == layers * 3 // 8


def test_what_enters_and_where_is_a_choice_and_the_rest_follows_from_the_budget():
    schedule = fp.build_pruner("visualheads", budget=64, entering=96, layer=16, tail=1).schedule(32, 576)
    assert schedule == [96] * 16 + [32] * 16
    late = fp.build_pruner("visualheads", budget=64, entering=96, layer=16, tail=0.5, tail_depth=0.75)
    assert late.schedule(32, 576) == [96] * 16 + [43] * 8 + [21] * 8
    alone = fp.build_pruner("visualheads", budget=64, before="none")
    assert alone.schedule(32, 576) == [576] * 2 + [43] * 18 + [10] * 12 and alone.parts(576)[0] is None
    large = fp.build_pruner("visualheads", budget=400)
    assert large.parts(576)[0] is None and large.schedule(32, 576) == [576] * 12 + [535] * 8 + [134] * 12
    assert sum(fp.build_pruner("visualheads", budget=560).schedule(32, 576)) == 560 * 32
    with pytest.raises(ValueError, match="entering: lets 60 tokens in, fewer than the budget of 64"):
        fp.build_pruner("visualheads", budget=64, entering=60).schedule(32, 576)
    with pytest.raises(ValueError, match="cannot reach an average of 64"):
        fp.build_pruner("visualheads", budget=64, entering=200, layer=16).schedule(32, 576)
    with pytest.raises(ValueError, match=r"tail_depth: got 0.625, layer 20; layers 25 to 31 are behind"):
        fp.build_pruner("visualheads", budget=64, entering=70, layer=24).schedule(32, 576)


@pytest.mark.parametrize("before", ["coverage", "scope", "mmtok"])
def test_the_first_choice_is_coverage_or_the_method_that_is_named(before):
    first, _ = fp.build_pruner("visualheads", budget=16, before=before).parts(64)
    vision = vision_outputs()
    assert first is not None
    if before != "coverage":
        assert torch.equal(first.select_visual(vision), fp.build_pruner(before, budget=32).select_visual(vision))
    else:  # nothing but the features counts, and what all of them share does not
        moved = vision.replace(features=vision.features.double() + 3, cls_attention=None)
        assert torch.equal(first.select_visual(vision), first.select_visual(moved))
        close = references.centred(references.array(vision.features))
        picks = references.covering(lambda picked: references.gains(close, picked), 32)
        assert first.select_visual(vision)[0].nonzero().squeeze(1).tolist() == picks


def test_of_two_that_add_equally_much_the_lower_index_is_taken():
    tokens = torch.randn(1, 40, 30, generator=torch.Generator().manual_seed(0))
    close = relevance.likeness(tokens, torch.ones(1, 40, dtype=torch.bool), "centred")
    assert torch.equal(close, close.mT) and torch.equal(close * 2**20, (close * 2**20).round())
    plain = relevance.likeness(tokens, torch.ones(1, 40, dtype=torch.bool), "plain")
    torch.testing.assert_close(plain, torch.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1))


def test_the_control_draws_from_the_question_alone():
    context = decoder_context()
    words = torch.randn(*context.text_present.shape, 30, generator=torch.Generator().manual_seed(0))
    asked = changed(context, text_embeds=words)
    found = kept(asked, choice="random")
    assert [len(row) for row in found] == [7] * len(found)
    assert kept(changed(asked, text_embeds=words, attention=context.attention.flip(-1)), choice="random") == found
    assert kept(changed(context, text_embeds=words + 1), choice="random") != found


def test_every_head_has_an_equal_voice_unless_rows_are_raw():
    context = decoder_context()
    loud = context.attention.clone()
    loud[:, 2] *= 1e-3
    whisper = changed(context, attention=loud)
    assert kept(context) == kept(whisper) and kept(context, rows="raw") != kept(whisper, rows="raw")
    best = kept(context, choice="best", rows="raw")
    assert best == [row.nonzero().squeeze(1).tolist() for row in top_mask(context.attention.mean(1), 7)]


def test_coverage_with_no_weights_does_not_listen_and_each_weight_has_its_say():
    context = decoder_context(visual=40)
    context = changed(context, hidden=context.hidden + 1)
    deaf = changed(context, attention=context.attention.flip(-1))
    off = {"targets": 0, "candidates": 0}
    assert kept(context, **off) == kept(deaf, **off)
    weighed = [kept(context, 12, targets=a, candidates=b) for a, b in ((0, 0), (1, 0), (0, 1))]
    assert len({str(choice) for choice in weighed}) == 3
    assert kept(context, 12, **off, similarity="plain") != weighed[0]
    assert kept(context, 12, choice="best") != kept(context, 12, choice="sum")


def test_where_nothing_is_gained_the_more_relevant_come_first():
    context = decoder_context(visual=40)
    same = changed(context, hidden=torch.ones(3, 40, 12))
    assert kept(same, similarity="plain") == kept(same, choice="best")


def test_a_prior_that_knows_as_much_leaves_nothing():
    rows = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(1))
    assert float(relevance.contrasted(rows, 2 * rows, "gain").abs().max()) < 1e-12
    assert float(relevance.merit(rows, 3 * rows, "contrast").abs().max()) < 1e-12
    none = torch.zeros_like(rows)
    for how in relevance.CONTRASTS:  # a row without a word after its image
        assert torch.equal(relevance.contrasted(rows, none, how), rows.double())
        assert torch.equal(relevance.contrasted(rows, None, how), rows.double())


def test_contrast_takes_away_what_the_first_word_attends_to_already():
    asked, unasked = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.1, 0.3])
    rows, prior = (torch.tensor(row)[None, None] / 2 for row in (asked, unasked))
    gain = np.maximum(0, asked * np.log(asked / unasked))
    torch.testing.assert_close(relevance.contrasted(rows, prior, "gain")[0, 0], torch.tensor(gain))
    ratio = torch.tensor(asked / (unasked + 1 / 3))
    torch.testing.assert_close(relevance.contrasted(rows, prior, "ratio")[0, 0], ratio)
    divergence = float((asked * np.log(asked / unasked)).sum())
    assert float(relevance.merit(rows, prior, "contrast")) == pytest.approx(divergence)
    assert float(relevance.merit(rows, None, "mass")) == pytest.approx(0.5)
    entropy = -(asked * np.log(asked)).sum()
    assert float(relevance.merit(rows, None, "compactness")) == pytest.approx(np.log(3) - entropy)


@pytest.mark.parametrize("switch", [{"contrast": "gain"}, {"contrast": "ratio"}, {"heads": 2}])
def test_the_prior_is_the_first_word_after_the_image_and_no_other(switch):
    context = decoder_context()
    words = context.text_attention.clone()
    words[0, :, 1:], words[1, :, :1] = 0, 1e3  # later words, and a place before a shorter text
    assert kept(context, **switch)[:2] == kept(changed(context, text_attention=words), **switch)[:2]
    words = context.text_attention.clone()
    words[0, :, 0] = words[0, :, 0].flip(-1).flip(0)
    assert kept(context, **switch)[0] != kept(changed(context, text_attention=words), **switch)[0]


def test_heads_are_the_best_of_each_sample():
    context = decoder_context()
    chosen = VisualHeadsInside(heads=2, head_strategy="compactness").select(context, 7)
    merits = relevance.merit(context.attention, None, "compactness")
    assert chosen.heads is not None and torch.equal(chosen.heads, merits.topk(2).indices)
    mass = VisualHeadsInside(heads=8, head_strategy="mass").select(context, 7)
    assert torch.equal(mass.keep, VisualHeadsInside().select(context, 7).keep)


def test_a_profile_weighs_the_heads_of_its_layer(tmp_path):
    file = tmp_path / "heads.json"
    profile = {"model": "m", "task": "t", "source": "s", "layers": 6, "heads": 8}
    file.write_text(json.dumps(profile | {"weights": [[1, 5, 3.0], [1, 2, 1.0], [4, 0, 1.0]]}))
    context = decoder_context()  # before layer 2
    shares = relevance.over_image(context.attention)
    both = VisualHeadsInside(profile=str(file), choice="best").select(context, 7)
    assert torch.equal(both.keep, top_mask(shares[:, 5] * 0.75 + shares[:, 2] * 0.25, 7))
    one = VisualHeadsInside(profile=str(file), choice="best", heads=1).select(context, 7)
    assert torch.equal(one.keep, top_mask(shares[:, 5], 7))
    picked = VisualHeadsInside(profile=str(file), choice="best", heads=1, head_strategy="mass").select(context, 7)
    assert picked.heads is not None and set(picked.heads.flatten().tolist()) <= {2, 5}
    moved = VisualHeadsInside(profile=str(file), shuffle=1).head_profile
    assert moved.named_layers == (1, 4) and moved.weights != both and len(moved.of_layer(1)) == 2
    with pytest.raises(ValueError, match="names no head of layer 0"):
        fp.build_pruner("visualheads", budget=8, entering=12, layer=1, profile=str(file)).schedule(6, 16)


def test_heads_of_several_layers_are_listened_to_as_those_of_one():
    context, earlier = decoder_context(), decoder_context(seed=4).attention  # before layer 2
    rows = torch.cat([earlier, context.attention], dim=1)
    there = changed(context, attention_in=lambda layer: {0: earlier, 1: context.attention}[layer])
    chosen = VisualHeadsInside(score_layers="1+0", choice="best").select(there, 7)
    assert torch.equal(chosen.keep, top_mask(relevance.over_image(rows).mean(1), 7))
    four = VisualHeadsInside(score_layers="0+1", choice="best", heads=4, head_strategy="mass").select(there, 7)
    assert four.heads is not None and torch.equal(four.heads, rows.sum(-1).topk(4).indices)
    first = VisualHeadsInside(score_layers=0, choice="best").select(there, 7)
    assert torch.equal(first.keep, top_mask(relevance.over_image(earlier).mean(1), 7))
    pruner = fp.build_pruner("visualheads", budget=8, score_layers="0+1")
    heads = fp.generate(tiny_llava(), pruner, prompts((5, 7), (2, 4)), max_new_tokens=1).trace.heads
    assert heads is not None and heads[0].tolist() == list(range(16))
    with pytest.raises(ValueError, match="score_layers: got '4'; before a drop at layer 2 there are 0 to 1"):
        fp.build_pruner("visualheads", budget=8, score_layers=4).schedule(6, 16)


def test_values_count_where_the_output_is_asked_for():
    context = decoder_context()
    values = context.values.clone()
    values[:, :, 4] = context.text_output[:, :, -1]  # what the head says anyway: without it nothing would move
    still = changed(context, values=values)
    pruner = VisualHeadsInside(measure="output", choice="best")
    assert not bool(pruner.select(still, 20).keep[:, 4].any())
    assert float(pruner.select(still, 20).scores[:, 4].abs().max()) == 0  # type: ignore[index]
    assert kept(still) == kept(context)


def test_sinks_are_left_dropped_or_kept():
    context = decoder_context(visual=24)
    hidden = torch.randn(3, 24, 900, generator=torch.Generator().manual_seed(2))
    hidden[:, [3, 9], 17] = 900.0
    sinks = relevance.sink_tokens(hidden, context.present)
    assert sinks.nonzero()[:, 1].tolist() == [3, 9] * 3
    attention = context.attention.clone()
    attention[:, :, 3] = 0.9
    seen = changed(context, hidden=hidden, attention=attention)
    best = {"choice": "best", "retained": 6}
    assert all(3 in row for row in kept(seen, sinks="leave", **best))
    dropped = kept(seen, sinks="drop", **best)
    assert not any({3, 9} & set(row) for row in dropped)
    held = kept(seen, sinks="keep", **best)
    assert all({3, 9} <= set(row) and len(row) == 6 for row in held)
    assert all(set(row) - {3, 9} < set(other) for row, other in zip(held, dropped, strict=True))
    assert not bool(relevance.sink_tokens(hidden[..., :300], context.present).any())


@pytest.mark.parametrize("switches", [{}, LOUD, {"choice": "sum"}, {"choice": "best"}])
def test_only_what_is_there_is_chosen_and_what_a_prompt_ends_with_stays(switches):
    context = decoder_context()
    present = torch.ones(3, 24, dtype=torch.bool)
    present[0, ::2], present[1] = False, False  # dropped before; a row without an image
    required = torch.zeros_like(present)
    required[2, 22] = True
    rows = {name: getattr(context, name) * present[:, None, None] for name in ("text_attention",)}
    there = changed(context, attention=context.attention * present[:, None], present=present, required=required, **rows)
    keep = VisualHeadsInside(**switches).select(there, 6).keep
    assert keep.sum(1).tolist() == [6, 0, 6] and not bool((keep & ~present).any()) and bool(keep[2, 22])
    hidden = context.hidden.clone()
    hidden[0, ::2] = 70.0  # what is dropped covers nothing, and nothing has to cover it
    again = VisualHeadsInside(**switches).select(changed(there, hidden=hidden), 6).keep
    assert torch.equal(keep[0], again[0])


def test_without_words_there_is_no_prior():
    context = decoder_context()
    none = changed(context, text_present=torch.zeros(3, 0, dtype=torch.bool), text_attention=torch.zeros(3, 8, 0, 24))
    assert kept(none, contrast="gain", choice="best") == kept(context, choice="best")
    mixed = context.text_present.clone()
    mixed[1] = False
    mixed_rows = changed(context, text_present=mixed)
    assert kept(mixed_rows, contrast="gain", choice="best")[1] == kept(context, choice="best")[1]


@pytest.mark.parametrize("switches", [LOUD, {"before": "none"}, {"before": "scope", "choice": "sum"}])
def test_it_runs_as_a_whole_without_a_wait(switches):
    pruner, inputs = fp.build_pruner("visualheads", budget=8, **switches), prompts((5, 7), 9, (4, 0))
    choose_without_host_copy(pruner)
    with prefill_without_host_sync(tiny_llava()):
        trace = fp.generate(tiny_llava(), pruner, inputs, max_new_tokens=2, do_sample=False).trace
    assert trace.tokens_entering[0] == trace.tokens_entering[2] == pruner.schedule(6, 16)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"before": "divprune"}, "before: got 'divprune'"),
        ({"importance": "received", "before": "coverage"}, "importance: got 'received'; only before='scope' reads it"),
        ({"before": "none", "entering": 90}, "entering: got 90; with before='none' every token enters"),
        ({"head_strategy": "mass"}, "head_strategy: got 'mass'; without heads, all are listened to"),
        ({"shuffle": 1}, "shuffle: got 1; only the weights of a profile are shuffled"),
        ({"choice": "best", "targets": 0.5}, "targets: got 0.5; only choice='cover' reads it"),
        ({"candidates": -1}, "candidates: got -1"),
        ({"heads": 0}, "heads: got 0"),
        ({"score_layers": "1+2", "measure": "output"}, "score_layers: got '1.2'; what contrast and measure='output'"),
        ({"contrast": "some"}, "contrast: got 'some'"),
        ({"layer": 0}, "layer: got 0"),
        ({"choice": "random", "rows": "raw"}, "rows: got 'raw'; choice='random' listens to no head"),
        ({"tail": 0}, "tail: got 0; expected a share above 0"),
        ({"tail": 1.5}, "tail: got 1.5; expected a number from 0 to 1"),
        ({"tail_depth": 0}, "tail_depth: got 0"),
        ({"tail": 1, "tail_depth": 0.7}, "tail_depth: got 0.7; with tail=1 nothing is dropped there"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner("visualheads", budget=64, **parameters)
    with pytest.raises(ValueError, match="heads: got 9; the layers of this model have 8 query heads"):
        fp.build_pruner("visualheads", heads=9).check_heads(8)


def test_every_switch_is_a_row_of_the_ablation():
    """A profile is a file of the model that is asked, so those of LLaVA-1.5 are in the study of that model."""
    switches = set(fp.build_pruner("visualheads", budget=64).parameters())
    given = set()
    for file in ("visualheads.yaml", "llava15/heads.yaml"):
        rows = load_matrix(ROOT / "configs" / file, planning=True).rows
        given |= {key for row in rows if row.pruner.name == "visualheads" for key, _ in row.given}
    assert switches - given == set()
