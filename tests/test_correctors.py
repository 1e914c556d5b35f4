"""Correctors: what is done to any method's choice, within its budget."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import references
import torch
from conftest import VISUAL, prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.ops.anchors import anchor_mask, group_means
from finepruner_lmms.pruners import CORRECTORS, Corrector, registry
from finepruner_lmms.testing import CHECKS, decoder_context, vision_outputs

ROOT = Path(__file__).parents[1]
COMPOSED = [
    "fastervlm+restore",
    "fastv+restore",
    "fastervlm+merge",
    "fastv+merge",
    "fastv+coordinates",
    "fastervlm+random_tail",
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", COMPOSED)
def test_a_corrected_method(name, check):
    check(name, getattr(references, name.split("+")[1]))


def test_every_corrector_is_checked():
    assert sorted({name.split("+")[1] for name in COMPOSED}) == CORRECTORS


@pytest.mark.parametrize("name", CORRECTORS)
def test_a_corrector_is_described(name):
    page = (ROOT / "docs" / "methods_correctors.md").read_text()
    assert f"\n## `{name}`\n" in page and registry.corrector_class(name).paper in page
    assert f"[`{name}`](methods_correctors.md#{name})" in (ROOT / "docs" / "methods.md").read_text()
    assert f"| `…+{name}` |" in (ROOT / "README.md").read_text()


# -- one budget -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fastv", "pdrop", "sparsevlm"])
def test_a_tail_behind_any_method_leaves_the_budget_as_it_is(name):
    # sparsevlm solves a schedule of its own at every step, which takes longer
    slow = name == "sparsevlm"
    shapes = [(32, 576)] if slow else [*itertools.product((6, 32, 40), (576, 2880))]
    for (layers, visual), tail, budget in itertools.product(
        shapes, (0.1, 0, 0.5)[: 1 if slow else 3], ("50%", "25%")[slow:]
    ):
        pruner = fp.build_pruner(f"{name}+random_tail", budget=budget, tail=tail)
        try:
            schedule = pruner.schedule(layers, visual)
        except ValueError as error:
            assert "cannot reach an average" in str(error) or "drops nothing before it" in str(error)
            assert layers == 6
            continue
        wanted = fp.pruners.budget.parse_budget(budget).tokens(visual)
        assert abs(Fraction(sum(schedule), layers) - wanted) <= max(Fraction(1), Fraction(visual, 400))
        begins = layers * 5 // 8
        share = Fraction(str(tail)) * schedule[begins - 1]
        assert tail or layers == 6 or schedule[begins] == 0
        assert layers == 6 or abs(schedule[begins] - share) <= max(3, Fraction(visual, 100))


def test_the_published_tails_follow_from_their_budgets():
    """`96 → 10 at layer 20` and `284 → 38` are budgets of 64 and 192 (released script); `284 → 0` counts as 177.5."""
    ten = fp.build_pruner("divprune+random_tail", budget=64, tail=0.104).schedule(32, 576)
    assert ten == [96] * 20 + [11] * 12  # 10 is 63.75 on average, 11 is 64.1
    many = fp.build_pruner("divprune+random_tail", budget=192, tail=0.134).schedule(32, 576)
    assert many[0] == 284 and many[20] == 39 and sum(many) / 32 == pytest.approx(192, abs=0.2)
    none = fp.build_pruner("divprune+random_tail", budget="710/2304", tail=0).schedule(32, 576)
    assert none == [284] * 20 + [0] * 12


def test_where_the_method_keeps_everything_the_rest_of_the_budget_is_the_tail():
    assert fp.build_pruner("divprune+random_tail", budget=500).schedule(32, 576) == [576] * 20 + [373] * 12


def test_what_comes_back_and_what_is_merged_take_places_of_the_budget():
    plain = fp.build_pruner("fastv", budget=64).stages(32, 576)
    assert fp.build_pruner("fastv+restore", budget=64).stages(32, 576) == plain
    (stage,) = fp.build_pruner("fastv+merge", budget=64, merged=0.3).stages(32, 576)
    assert (stage.retained, stage.merged) == (21, 9) and stage.retained + stage.merged == plain[0].retained
    vision, whole = vision_outputs(), fp.build_pruner("fastervlm", budget=12)
    fewer = fp.build_pruner("fastervlm", budget=9).select_visual(vision)
    keep = fp.build_pruner("fastervlm+restore", budget=12).select_visual(vision)
    assert keep.sum(1).tolist() == [12] * 3 and bool((keep | ~fewer).all())
    assert not torch.equal(keep, whole.select_visual(vision))


# -- what each of them does -------------------------------------------------------------------------------------------


def test_anchors_stand_for_groups_and_not_twice_for_one():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6)[:3]
    groups = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    tokens = (centres[groups] + 0.05 * torch.randn(9, 6, generator=generator))[None]
    anchors = anchor_mask(tokens, torch.ones(1, 9, dtype=torch.bool), 3)
    assert sorted(groups[i] for i in anchors[0].nonzero()) == [0, 1, 2]
    means, index = group_means(tokens, ~anchors, anchors, 3)
    for mean, anchor in zip(means[0], index[0].tolist(), strict=True):
        own = [i for i in range(9) if groups[i] == groups[anchor]]
        torch.testing.assert_close(mean, tokens[0, own].mean(0))


def test_no_anchor_is_taken_from_what_is_no_candidate():
    tokens = torch.randn(4, 10, 5, generator=torch.Generator().manual_seed(1))
    candidates = torch.arange(10) % 3 == torch.tensor([0, 1, 2, 5])[:, None]
    anchors = anchor_mask(tokens, candidates, 2)
    assert bool((candidates | ~anchors).all()) and anchors.sum(1).tolist() == [2, 2, 2, 0]


@pytest.mark.parametrize("into", ["few", "kept"])
def test_merged_tokens_before_the_model_are_means_of_what_was_dropped(into):
    vision = vision_outputs()
    pruner = fp.build_pruner("fastervlm+merge", budget=10, merge_into=into, merged=0.4)
    reduced = pruner.reduce(vision)
    own = fp.build_pruner("fastervlm", budget=6 if into == "few" else 10).select_visual(vision)
    assert bool((reduced.keep | ~own).all()) and torch.equal(reduced.merged, ~reduced.keep)
    for row in range(3):
        tokens, keep = vision.projected[row], reduced.keep[row].nonzero()[:, 0].tolist()
        targets = [i for i in keep if into == "kept" or not own[row, i]]
        joined = {i: [i] for i in targets}
        for source in set(range(64)) - set(keep):
            near = [references.cosine(tokens[source].numpy(), tokens[i].numpy()) for i in targets]
            joined[targets[near.index(max(near))]].append(source)
        assert sum(map(len, joined.values())) == 64 - len(keep) + len(targets)
        for place, token in enumerate(keep):
            torch.testing.assert_close(reduced.tokens[row, place], tokens[joined.get(token, [token])].mean(0))


def test_merged_tokens_inside_the_model_are_means_of_hidden_states():
    context = decoder_context().at(32, 3)
    pruner = fp.build_pruner("fastv+merge")
    found = pruner.select(context, 5)
    dropped = ~found.keep
    assert found.keep.sum(1).tolist() == [5] * 3 and torch.equal(found.sources, dropped)
    for row in range(3):
        states, rest = context.hidden[row].numpy(), dropped[row].nonzero()[:, 0].tolist()
        targets = references.anchors(states, rest, 3)
        assert found.merged_from[row].tolist() == targets
        near = [max(targets, key=lambda t: (t == i, references.cosine(states[i], states[t]))) for i in rest]
        for place, target in enumerate(targets):
            mean = states[[i for i, t in zip(rest, near, strict=True) if t == target]].mean(0)
            torch.testing.assert_close(found.merged[row, place], torch.from_numpy(mean))


def test_coordinates_are_at_the_positions_that_the_model_itself_rotates_by():
    """By hand: the mean cosine and sine of position times frequency, of the prompt's own positions."""
    model, inputs = tiny_llava(), prompts((5, 7), (2, 9))
    pruner = fp.build_pruner("fastv+coordinates", budget=10, coordinates=0.5)
    trace = fp.generate(model, pruner, inputs, max_new_tokens=1).trace
    ((layer, kept),) = trace.kept.items()
    retained = pruner.schedule(6, VISUAL)[layer]
    frequencies = model.model.language_model.rotary_emb.inv_freq.double()
    for row, start in enumerate((5, 2)):
        angles = torch.arange(start, start + VISUAL).double()[:, None] * frequencies
        places = math.floor(retained / 2 + 0.5)
        real = references.best(angles.cos().mean(1).tolist(), places - places // 2)
        sines = angles.sin().mean(1)
        sines[real] = -math.inf
        assert set(real + references.best(sines.tolist(), places // 2)) <= set(kept[row].tolist())


def test_a_tail_is_drawn_anew_for_each_question_and_seed():
    model, options = tiny_llava(), {"max_new_tokens": 1}
    inputs = prompts(*[(5, 7)] * 6)

    def tail(**parameters):
        pruner = fp.build_pruner("uniform+fastv+random_tail", budget=6, first=12, tail=0.5, **parameters)
        trace = fp.generate(model, pruner, inputs, **options).trace
        assert sorted(trace.kept) == [0, 2, 3]
        for before, after in zip(trace.kept[2], trace.kept[3], strict=True):
            assert set(after.tolist()) < set(before.tolist())
        return [kept.tolist() for kept in trace.kept[3]]

    assert tail() == tail() and tail() != tail(tail_seed=1)


def test_without_a_tail_no_visual_token_is_left_behind_the_horizon():
    pruner = fp.build_pruner("uniform+random_tail", budget=5, tail=0)
    trace = fp.generate(tiny_llava(layers=8), pruner, prompts((5, 7)), max_new_tokens=1).trace
    assert trace.tokens_entering == [[8] * 5 + [0] * 3] and trace.kv_lengths == [20] * 5 + [12] * 3


def test_correctors_stand_behind_either_method_of_a_chain():
    pruner = fp.build_pruner("divprune+restore+fastv+merge+random_tail", budget=7, first=12, tail=0.25)
    assert pruner.name == "divprune+restore+fastv+merge+random_tail"
    assert {"first", "restored", "merged", "tail", "layer"} <= set(pruner.parameters())
    trace = fp.generate(tiny_llava(), pruner, prompts((5, 7), 11, (2, 4)), max_new_tokens=2).trace
    schedule = pruner.schedule(6, VISUAL)
    assert trace.tokens_entering == [schedule, [0] * 6, schedule] and abs(sum(schedule) / 6 - 7) <= 1


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("restore", {}, "'restore' is a corrector, which is written behind a method; write 'divprune.restore'"),
        ("restore+fastv", {}, "'restore' corrects a method, and none stands before it"),
        ("fastv+restore+restore", {}, "'restore' stands there twice"),
        ("divprune+random_tail+fastv", {}, "'random_tail' is for the layers behind all methods, so it stands last"),
        ("fastv+random_tail+restore", {}, "'restore' cannot stand behind 'random_tail'"),
        ("blind+restore", {}, "'restore' cannot sit on 'blind', which leaves no token"),
        ("vanilla+merge", {}, "'merge' cannot sit on 'vanilla', which keeps every token"),
        ("tops+restore", {}, "cannot sit on 'tops', which shares its budget out between two stages itself"),
        ("visionzip+restore", {}, "needs a method that keeps tokens as they are, and 'visionzip' makes new ones"),
        ("sparsevlm+merge", {}, "is for what a method drops, and 'sparsevlm' merges that already"),
        (
            "divprune+coordinates",
            {},
            "after 'divprune' all are numbered anew; sit it on .*'divprune.fastv.coordinates'",
        ),
        ("fastv+coordinates", {"positions": "renumbered"}, "and 'fastv' numbers them anew"),
        ("fastv+merge", {"merge_into": "kept"}, "into kept tokens works before the language model only"),
        ("fastv+restore", {"restored": 1.5}, "restored: got 1.5; expected a number from 0 to 1"),
        ("fastv+random_tail", {"tail_depth": 1}, "tail_depth: got 1; expected a share of the layers between 0 and 1"),
        (
            "fastv+restore",
            {"restoerd": 0.5},
            "restoerd: method 'fastv.restore' does not read it .did you mean 'restored'",
        ),
        ("fastv+restoer", {}, "unknown method 'restoer' .did you mean 'restore'"),
    ],
)
def test_what_makes_no_sense_is_told_when_it_is_built(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner(name, budget=64, **parameters)


def test_a_tail_that_begins_before_its_method_drops_is_refused():
    pruner = fp.build_pruner("fastv+random_tail", budget="75%", layer=20)
    with pytest.raises(
        ValueError, match="tail_depth: the tail begins before layer 20, and 'fastv' drops nothing before"
    ):
        pruner.schedule(32, 576)


def test_a_corrector_of_ones_own_is_known_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(registry, "_CORRECTORS", dict(registry._CORRECTORS))

    @dataclass(frozen=True, kw_only=True)
    class Nothing(Corrector):
        """Leaves a method as it is."""

        def before(self, method):
            return method

        def inside(self, method):
            return method

    registry.register_corrector("nothing")(Nothing)
    assert "nothing" in CORRECTORS or "nothing" in fp.pruners.CORRECTORS
    assert fp.build_pruner("fastv+nothing", budget=64) == fp.build_pruner("fastv", budget=64)
    for taken in ("fastv", "merge"):
        with pytest.raises(ValueError, match=f"the name '{taken}' belongs to another already"):
            registry.register_corrector(taken)(Nothing)
    with pytest.raises(ValueError, match="the name 'merge' belongs to a corrector already"):
        registry.register("merge")(type(fp.build_pruner("fastv")))
