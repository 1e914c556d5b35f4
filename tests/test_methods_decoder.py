"""Decoder-side methods beside their recorded references: schedules, raters, clusters, positions, guides."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from brute_force import answer, best
from conftest import VISUAL, alone, prompts, rounding, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.engine import attention_rows
from finepruner_lmms.engine.attention_rows import TEXT_ROWS, visual_rows
from finepruner_lmms.heads import HEAD_STRATEGIES, NORMALISATIONS, consensus
from finepruner_lmms.heads.queries import known_queries
from finepruner_lmms.ops.clustering import merge_by_density_peaks
from finepruner_lmms.ops.selection import with_required
from finepruner_lmms.pruners.sparsevlm import rater_weights, recycling
from finepruner_lmms.testing import HostSync, choose_without_host_copy, decoder_context, no_host_sync

OPTIONS = {"max_new_tokens": 5, "do_sample": False, "output_logits": True}


def schedule(name: str, budget: int, layers: int, **parameters) -> list[int]:
    return fp.build_pruner(name, budget=budget, **parameters).schedule(layers, 576)


def runs(values: list[int]) -> list[tuple[int, int]]:
    """`[5, 5, 3]` → `[(5, 2), (3, 1)]`."""
    shown: list[tuple[int, int]] = []
    for value in values:
        shown = [*shown[:-1], (value, shown[-1][1] + 1)] if shown and shown[-1][0] == value else [*shown, (value, 1)]
    return shown


@pytest.mark.parametrize(
    "layers, budget, counts, average",
    [
        (32, 192, (576, 334, 194, 112, 65), "191.375"),
        (32, 128, (576, 251, 109, 47, 20), "127.0625"),
        (32, 64, (576, 112, 21, 4, 0), "63.25"),
        (40, 192, (576, 337, 197, 115, 67), "190.95"),
        (40, 128, (576, 258, 115, 51, 22), "127.4"),
        (40, 64, (576, 129, 29, 6, 1), "63.6"),
    ],
)
def test_pdrop_schedules_are_the_published_ones(layers, budget, counts, average):
    found = schedule("pdrop", budget, layers)
    lengths = (2, 6, 8, 8, 8) if layers == 32 else (2, 8, 10, 10, 10)
    assert runs(found) == list(zip(counts, lengths, strict=True))
    assert Fraction(sum(found), layers) == Fraction(average)


def test_pdrop_official_has_three_stages_and_a_floor():
    assert runs(schedule("pdrop", 270, 32, variant="official")) == [(576, 8), (288, 8), (144, 8), (72, 8)]
    for budget in (144, 200, 500):
        found = schedule("pdrop", budget, 32, variant="official")
        assert abs(sum(found) / 32 - budget) <= 1
    for budget in (64, 128, 143):
        with pytest.raises(ValueError, match="reachable: 144 to 576"):
            schedule("pdrop", budget, 32, variant="official")


@pytest.mark.parametrize(
    "layers, budget, counts, average",
    [
        (32, 192, (576, 308, 203, 112), "191.09375"),
        (32, 128, (576, 308, 115, 37), "126.5"),
        (32, 64, (576, 80, 31, 16), "63.21875"),
        (40, 192, (576, 308, 203, 112), "191.9"),
        (40, 128, (576, 308, 106, 41), "127.3"),
        (40, 64, (576, 85, 36, 21), "62.85"),
    ],
)
def test_sparsevlm_schedules_are_the_published_ones(layers, budget, counts, average):
    found = schedule("sparsevlm", budget, layers)
    lengths = (2, 4, 9, 17) if layers == 32 else (2, 6, 12, 20)
    assert runs(found) == list(zip(counts, lengths, strict=True))
    assert Fraction(sum(found), layers) == Fraction(average)


@pytest.mark.parametrize(
    "budget, counts, entering",
    [
        (192, (309, 204, 113), "206.5"),
        (128, (312, 117, 39), "145.40625"),
        (96, (249, 55, 27), "114.09375"),
        (64, (82, 32, 18), "82.25"),
    ],
)
def test_sparsevlm_official_is_the_released_table(budget, counts, entering):
    found = schedule("sparsevlm", budget, 32, variant="official")
    assert runs(found) == list(zip((576, *counts), (3, 4, 9, 16), strict=True))
    assert Fraction(sum(found), 32) == Fraction(entering)


@pytest.mark.parametrize("layers, budget", [(32, 100), (40, 192), (24, 192)])
def test_sparsevlm_official_has_no_other_budgets(layers, budget):
    with pytest.raises(ValueError, match="released tables"):
        schedule("sparsevlm", budget, layers, variant="official")


@pytest.mark.parametrize("name, least", [("fastv", 36), ("pdrop", 36), ("sparsevlm", 39)])
def test_budgets_below_the_first_drop_are_refused(name, least):
    assert schedule(name, least, 32)
    with pytest.raises(ValueError, match=f"reachable: {least - 1 if name == 'sparsevlm' else least}"):
        schedule(name, least - 1, 32)


def test_recycling_counts():
    assert [recycling(q) for q in (1, 276, 108, 94)] == [(1, 1), (82, 8), (32, 3), (28, 2)]
    assert [recycling(q, official=True) for q in (276, 109, 94)] == [(83, 9), (33, 4), (29, 3)]


def test_raters_are_the_words_that_the_image_relates_to_more_than_average():
    visual = torch.tensor([[[4.0, 0, 0], [4, 0, 0], [0, 4, 0]]])
    text = torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]])
    weights = rater_weights(visual, text, torch.ones(1, 3, dtype=torch.bool))
    logits = (visual @ text.transpose(1, 2))[0].softmax(-1).mean(0)
    assert (weights[0] > 0).tolist() == (logits > logits.mean()).tolist() == [True, False, False]
    padded = rater_weights(visual, torch.cat([text[:, :1] * 9, text], 1), torch.tensor([[False, True, True, True]]))
    assert padded[0, 1:].tolist() == weights[0].tolist()


def test_without_raters_the_last_word_rates():
    same = torch.ones(1, 4, 3)
    assert rater_weights(same, same, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 1]]
    one = torch.tensor([[False, False, False, True]])
    assert rater_weights(torch.randn(1, 4, 3), torch.randn(1, 4, 3), one).tolist() == [[0, 0, 0, 1]]
    assert rater_weights(same, same, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 1]]


def test_clusters_do_not_mix_two_clouds():
    generator = torch.Generator().manual_seed(0)
    clouds = torch.cat([torch.randn(1, 12, 6, generator=generator), 50 + torch.randn(1, 9, 6, generator=generator)], 1)
    order = torch.randperm(21, generator=generator)
    merged, _ = merge_by_density_peaks(clouds[:, order], 3)
    assert sorted(round(float(token.mean()) / 50) for token in merged[0]) in ([0, 0, 1], [0, 1, 1])
    assert all(min(abs(float(token.mean()) - at) for at in (0, 50)) < 2 for token in merged[0])
    again, _ = merge_by_density_peaks(clouds, 3)
    torch.testing.assert_close(merged[0].sort(0).values, again[0].sort(0).values)


def test_one_cluster_is_the_mean_and_as_many_as_tokens_are_the_tokens():
    tokens = torch.randn(1, 21, 6)
    torch.testing.assert_close(merge_by_density_peaks(tokens, 1)[0][0, 0], tokens[0].mean(0))
    everyone, centres = merge_by_density_peaks(tokens, 21)
    torch.testing.assert_close(everyone[0], tokens[0, centres[0]])


def test_two_centres_are_the_densest_pair():
    """The tie that two clusters always have goes to the one whose next neighbour is nearer, wherever it stands."""
    line = torch.tensor([[[0.0], [1.0], [1.5], [5.0]]])
    assert merge_by_density_peaks(line, 2)[1].tolist() == [[1, 2]]
    assert merge_by_density_peaks(line.flip(1), 2)[1].tolist() == [[2, 1]]


def test_merged_tokens_are_means_of_all_recycled_ones():
    """Each recycled token is in exactly one cluster: sizes times means add up to the sum."""
    tokens = torch.randn(2, 40, 8, dtype=torch.float64)
    merged, centres = merge_by_density_peaks(tokens, 5)
    for row in range(2):
        nearest = torch.cdist(tokens[row], tokens[row, centres[row]]).argmin(1)
        for cluster in range(5):
            torch.testing.assert_close(merged[row, cluster], tokens[row, nearest == cluster].mean(0))
    alone_row, _ = merge_by_density_peaks(tokens[1:], 5)
    torch.testing.assert_close(merged[1:], alone_row)


STAGES = {
    "pdrop": fp.build_pruner("pdrop", budget="50%"),
    "pdrop renumbered": fp.build_pruner("pdrop", budget="50%", positions="renumbered"),
    "pdrop official": fp.build_pruner("pdrop", budget="50%", variant="official"),
    "pdrop official, original positions": fp.build_pruner(
        "pdrop", budget="50%", variant="official", positions="original"
    ),
    "fastv renumbered": fp.build_pruner("fastv", budget="50%", positions="renumbered"),
    "pdrop guided by heads": fp.build_pruner("finepruner", guide="pdrop", budget="50%", heads=3),
    "pdrop quota": fp.build_pruner("pdrop", budget="50%", aggregate="quota"),
}


def by_turns(attention: torch.Tensor) -> torch.Tensor:
    """The turn in which a token is first nominated, by going through the turns."""
    orders = [sorted(range(attention.shape[1]), key=lambda i: (-float(row[i]), i)) for row in attention]
    first: dict[int, int] = {}
    for place in range(attention.shape[1]):
        for head, order in enumerate(orders):
            first.setdefault(order[place], place * len(orders) + head)
    return torch.tensor([-float(first[i]) for i in range(attention.shape[1])])


@pytest.mark.parametrize("which", STAGES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_brute_force(which, attention):
    model, pruner, inputs = tiny_llava(attention), STAGES[which], prompts((5, 7), 11, (2, 4))
    result = fp.generate(model, pruner, inputs, **OPTIONS)
    logits = torch.stack(result.logits, dim=1)
    stages = {stage.layer: stage.retained for stage in pruner.stages(6, VISUAL)}
    assert len(stages) >= (1 if "fastv" in which else 2)

    def choose(_layer, rows, alive, count):
        if pruner.name == "finepruner":
            rows = rows[sorted(best(rows[:, alive].sum(1), list(range(len(rows))), pruner.heads))]
        return best(by_turns(rows) if pruner.aggregate == "quota" else rows.mean(0), alive, count)

    for row in range(3):
        expected, kept = answer(
            model,
            alone(inputs, row),
            stages,
            choose,
            5,
            renumber=pruner.renumber_positions,
            next_layer="official" in which,
        )
        torch.testing.assert_close(logits[row], expected, **rounding())
        for layer, tokens in kept.items():
            assert result.trace.kept[layer][row].tolist() == tokens


@pytest.mark.parametrize("positions", ["renumbered", "original"])
def test_merging_in_a_batch_of_any_mix(positions):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4), (9, 12))
    pruner = fp.build_pruner("sparsevlm", budget="50%", positions=positions)
    together = fp.generate(model, pruner, inputs, **OPTIONS)
    assert together.trace.tokens_entering[0] == pruner.schedule(6, VISUAL)
    for row in range(4):
        single = fp.generate(model, pruner, alone(inputs, row), **OPTIONS)
        ours = torch.stack([step[row] for step in together.logits])
        torch.testing.assert_close(ours, torch.stack([s[0] for s in single.logits]), **rounding())
    other = fp.build_pruner("sparsevlm", budget="50%", positions="original" if positions == "renumbered" else None)
    changed = fp.generate(model, other, inputs, **OPTIONS)
    assert not torch.allclose(torch.stack(together.logits)[:, 0], torch.stack(changed.logits)[:, 0], atol=1e-3)
    assert torch.equal(together.logits[0][1], changed.logits[0][1])  # the row without an image


def test_text_passes_a_merge_unchanged():
    """Behind a merge stand the kept tokens in order, then the merged, then the text, bit for bit."""
    model, inputs = tiny_llava(), prompts((5, 7))
    pruner = fp.build_pruner("sparsevlm", budget="50%")
    stage = pruner.stages(6, VISUAL)[0]
    seen = {}

    def before(_module, args):
        seen.setdefault("in", args[0].clone())

    def after(_module, args, kwargs):
        seen.setdefault("out", args[0].clone())

    layer = model.model.language_model.layers[stage.layer]
    first = layer.register_forward_pre_hook(before)
    with fp.attach(model, pruner) as trace:
        second = layer.register_forward_pre_hook(after, with_kwargs=True)
        model.generate(**inputs, max_new_tokens=1)
    first.remove()
    second.remove()
    kept = trace.kept[stage.layer][0]
    before_, after_ = seen["in"][0], seen["out"][0]
    assert torch.equal(after_[:5], before_[:5]) and torch.equal(after_[-7:], before_[-7:])
    assert torch.equal(after_[5 : 5 + stage.retained], before_[5 + kept])
    assert len(after_) == 5 + stage.retained + stage.merged + 7


def test_a_guide_of_all_heads_is_the_guided_method():
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    for name in ("fastv", "pdrop", "sparsevlm"):
        plain = fp.generate(model, fp.build_pruner(name, budget="50%"), inputs, **OPTIONS)
        guided = fp.build_pruner("finepruner", guide=name, budget="50%", heads=8)
        assert torch.equal(torch.stack(plain.logits), torch.stack(fp.generate(model, guided, inputs, **OPTIONS).logits))
        assert guided.schedule(32, 576) == fp.build_pruner(name, budget="50%").schedule(32, 576)


def test_guides_differ_from_what_they_guide():
    context = decoder_context()
    for name in ("fastv", "pdrop", "sparsevlm"):
        guided = fp.build_pruner("finepruner", guide=name, heads=1).select(context, 9)
        assert not torch.equal(guided.keep, fp.build_pruner(name).select(context, 9).keep)


def test_consensus_reaches_the_model():
    model, inputs = tiny_llava(), prompts((5, 7), 11)
    for preset in ("doc", "latest"):
        pruner = fp.build_pruner("finepruner", budget="50%", head_strategy="consensus", preset=preset)
        trace = fp.generate(model, pruner, inputs, **OPTIONS).trace
        record = trace.details[2].record(0)
        assert trace.heads[0][trace.heads[0] >= 0].tolist() == record.heads
        scores = record.token_scores
        assert trace.kept[2][0].tolist() == best(scores, list(range(VISUAL)), len(trace.kept[2][0]))
    with pytest.warns(UserWarning, match="heads=4 has no effect"):
        fp.build_pruner("finepruner", head_strategy="consensus", heads=4)


ENDING = {
    "fastv": fp.build_pruner("fastv", budget="50%"),
    "pdrop": fp.build_pruner("pdrop", budget="50%"),
    "pdrop official": fp.build_pruner("pdrop", budget="50%", variant="official"),
    "three heads": fp.build_pruner("finepruner", budget="50%", heads=3),
    "nothing left": fp.build_pruner("fastv", budget="16.6666666666666666667%", layer=1),
}


@pytest.mark.parametrize("which", ENDING)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_that_ends_with_the_image_keeps_the_token_that_is_read(which, attention):
    """The last visual token takes a place of the budget, and one more where there is none; the best take the rest."""
    model, pruner, inputs = tiny_llava(attention), ENDING[which], prompts((5, 0), 11, (3, 0), (2, 4))
    result = fp.generate(model, pruner, inputs, **OPTIONS)
    stages = {stage.layer: stage.retained for stage in pruner.stages(6, VISUAL)}
    wanted = 0

    def choose(_layer, rows, alive, count):
        nonlocal wanted
        if pruner.name == "finepruner":
            rows = rows[sorted(best(rows[:, alive].sum(1), list(range(len(rows))), pruner.heads))]
        chosen = best(rows.mean(0), alive, count)
        if ends and VISUAL - 1 not in chosen:
            wanted += 1
            chosen = [*best(rows.mean(0), alive[:-1], max(count - 1, 0)), VISUAL - 1]
        return chosen

    for row, ends in ((0, True), (2, True), (3, False)):
        expected, kept = answer(
            model,
            alone(inputs, row),
            stages,
            choose,
            5,
            renumber=pruner.renumber_positions,
            next_layer="official" in which,
        )
        ours = torch.stack([step[row] for step in result.logits])
        torch.testing.assert_close(ours, expected, **rounding())
        for layer, tokens in kept.items():
            assert result.trace.kept[layer][row].tolist() == tokens
            assert len(tokens) == max(stages[layer], int(ends))
    assert wanted, "the last token was chosen by its score everywhere: nothing was tested"


@pytest.mark.parametrize("budget", ["50%", "40%"])
def test_merging_before_a_last_token_that_stays(budget):
    model, inputs = tiny_llava(), prompts((5, 0), (2, 4), (3, 0), 7)
    pruner = fp.build_pruner("sparsevlm", budget=budget)
    together = fp.generate(model, pruner, inputs, **OPTIONS)
    schedule = pruner.schedule(6, VISUAL)
    nothing = [stage.layer for stage in pruner.stages(6, VISUAL) if not stage.retained]
    assert nothing  # from there on, the token that is read is kept beside the merged one
    ending = [count + (layer >= nothing[0]) for layer, count in enumerate(schedule)]
    assert together.trace.tokens_entering == [ending, schedule, ending, [0] * 6]
    for row in range(4):
        single = fp.generate(model, pruner, alone(inputs, row), **OPTIONS)
        ours = torch.stack([step[row] for step in together.logits])
        torch.testing.assert_close(ours, torch.stack([s[0] for s in single.logits]), **rounding())
    for kept in together.trace.kept.values():
        assert kept[0][-1] == kept[2][-1] == VISUAL - 1


def test_a_method_that_does_not_know_of_required_tokens_keeps_them_too():
    keep = torch.tensor([[True, True, False, False], [True, False, False, False], [True, True, False, False]])
    required = torch.tensor([[False, False, False, True]] * 2 + [[False] * 4])
    scores = torch.tensor([[0.1, 0.5, 0.2, 0.0]] * 3)
    assert with_required(keep, required, 2, scores).int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]]
    assert with_required(keep, required, 2).int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]]
    assert with_required(keep & False, required, 0).int().tolist() == [[0, 0, 0, 1]] * 2 + [[0] * 4]


@pytest.mark.parametrize("tail", [(0, 3), (0, 0), (2, 3)])
def test_raters_of_prompts_with_and_without_text(tail):
    """Without text after the image, the last token of the prompt is the only rater, alone and in a batch."""
    model, inputs = tiny_llava(), prompts((5, tail[0]), (2, tail[1]))
    trace = fp.generate(model, fp.build_pruner("sparsevlm", budget="50%"), inputs, max_new_tokens=1).trace
    eager = tiny_llava("eager")(**alone(inputs, 0), output_attentions=True).attentions[1][0]
    layer, kept = next(iter(sorted(trace.kept.items())))
    assert layer == 2
    if not tail[0]:
        row = eager[:, -1, 5 : 5 + VISUAL].mean(0)
        others = best(row, list(range(VISUAL - 1)), len(kept[0]) - 1)
        assert kept[0].tolist() == [*others, VISUAL - 1]


@pytest.mark.parametrize("query", ["raters", "attention_weighted", "max_attention_token", "text_tokens_only"])
def test_text_is_looked_at_a_part_at_a_time(query, monkeypatch):
    """Slices of a long text give what the whole gives, and no more rows are computed at once than a slice holds."""
    model, inputs = tiny_llava(), prompts((5, 150), (2, 70), (3, 1))
    pruner = (
        fp.build_pruner("sparsevlm", budget="50%")
        if query == "raters"
        else fp.build_pruner("finepruner", budget=8, heads=3, query=query)
    )
    sizes = []

    def counted(*args):
        sizes.append(args[-2])
        return visual_rows(*args)

    monkeypatch.setattr(attention_rows, "visual_rows", counted)
    parts = fp.generate(model, pruner, inputs, max_new_tokens=1, output_logits=True)
    assert max(sizes) == TEXT_ROWS
    monkeypatch.setattr(attention_rows, "TEXT_ROWS", 1000)
    whole = fp.generate(model, pruner, inputs, max_new_tokens=1, output_logits=True)
    assert max(sizes) == 150
    for layer, kept in whole.trace.kept.items():
        assert [row.tolist() for row in parts.trace.kept[layer]] == [row.tolist() for row in kept]
    torch.testing.assert_close(parts.logits[0], whole.logits[0], **rounding())


def test_sparsevlm_in_double_precision():
    model, inputs = tiny_llava(dtype=torch.float64), prompts((5, 7), 11, (2, 4))
    found = fp.generate(model, fp.build_pruner("sparsevlm", budget="50%"), inputs, **OPTIONS)
    single = fp.generate(tiny_llava(), fp.build_pruner("sparsevlm", budget="50%"), inputs, **OPTIONS)
    torch.testing.assert_close(torch.stack(found.logits).float(), torch.stack(single.logits), rtol=1e-3, atol=1e-3)


VARIANTS = [
    *({"head_strategy": name, "normalise": way} for name in HEAD_STRATEGIES for way in NORMALISATIONS),
    *({"head_strategy": "consensus", "preset": name} for name in consensus.PRESETS),
    *({"query": name} for name in known_queries()),
    {"head_strategy": "recommended"},
    {"head_strategy": "fixed", "fixed_heads": "1+3"},
    {"aggregate": "quota", "rows": "renormalised"},
    {"guide": "sparsevlm"},
    {"guide": "pdrop"},
]


@pytest.mark.parametrize("parameters", VARIANTS, ids=lambda parameters: "-".join(parameters.values()))
def test_no_way_to_guide_copies_anything_to_the_device(parameters):
    choose_without_host_copy(fp.build_pruner("finepruner", budget=9, **parameters))


def test_the_guard_against_host_copies_notices_them():
    values = torch.rand(4)
    for copy in (
        lambda: torch.tensor([1.0, 2.0]),
        lambda: torch.as_tensor([1]),
        lambda: values.new_tensor([0.4]),
        lambda: values[[0, 2]],
        lambda: values.__setitem__([0], 1.0),
        lambda: values.new_zeros(2).__setitem__(np.array([0]), 1.0),
    ):
        with pytest.raises(HostSync, match="cop"), no_host_sync():
            copy()

    class Elsewhere(type(fp.build_pruner("uniform"))):
        def choose(self, vision):
            return torch.ones(len(vision.features), 16, dtype=torch.bool).to(vision.features.device)

    with pytest.raises(HostSync, match="makes a tensor on the host"):
        choose_without_host_copy(Elsewhere(budget=16))
