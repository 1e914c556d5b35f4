"""Parameters, budgets and schedules: what is accepted, what is refused and how."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

import finepruner_lmms as fp
from finepruner_lmms.heads import select_heads
from finepruner_lmms.ops.grid import grid_indices
from finepruner_lmms.ops.selection import fingerprint, top_mask
from finepruner_lmms.ops.token_scores import token_scores
from finepruner_lmms.pruners import DecoderContext, build_pruner
from finepruner_lmms.pruners.budget import parse_budget


def test_methods_are_the_contract():
    decoder, vision = (
        "fastv finepruner pdrop sparsevlm",
        "cdpruner divprune fastervlm random uniform visionzip vispruner",
    )
    assert {"vanilla", *decoder.split(), *vision.split()} <= set(fp.METHODS) and sorted(fp.METHODS) == fp.METHODS
    assert build_pruner("fastv+finepruner", heads=8) == build_pruner("finepruner", heads=8)
    assert {build_pruner(name).side for name in decoder.split()} == {"decoder"}
    assert {build_pruner(name).side for name in vision.split()} == {"vision"}
    assert build_pruner("divprune+fastv").side == "both"


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("fastvv", {}, "unknown method 'fastvv' .did you mean 'fastv'"),
        ("fastv", {"heads": 8}, "heads: method 'fastv' does not read it"),
        ("fastv", {"layers": 2}, "did you mean 'layer'"),
        ("fastv", {"layer": 0}, "layer: got 0; expected a whole number of at least 1"),
        ("fastv", {"layer": 2.0}, "layer: got 2.0"),
        ("fastv", {"rows": "row"}, "rows: got 'row' .did you mean 'raw'"),
        ("fastv", {"aggregate": "sum"}, "aggregate: got 'sum'; known: mean, max, quota"),
        ("fastv", {"budget": 0}, "budget: got 0"),
        ("fastv", {"budget": -3}, "budget: got -3"),
        ("fastv", {"budget": "150%"}, "budget: got '150%'"),
        ("fastv", {"budget": "0%"}, "budget: got '0%'"),
        ("fastv", {"budget": "many"}, "budget: got 'many'"),
        ("fastv", {"budget": True}, "budget: got True"),
        ("fastv", {"budget": 12.5}, "budget: got 12.5"),
        ("fastv", {"budget": 64.0}, "budget: got 64.0"),
        ("fastv", {"budget": np.True_}, "budget: got "),
        ("fastv", {"layer": np.int64(0)}, "layer: got "),
        ("finepruner", {"heads": 0}, "heads: got 0"),
        ("finepruner", {"head_strategy": "summ"}, "head_strategy: got 'summ'"),
        ("finepruner", {"query": "first"}, "query: got 'first'; known: last"),
        ("random", {"seed": -1}, "seed: got -1"),
        ("vanilla", {"seed": 1}, "seed: method 'vanilla' does not read it"),
    ],
)
def test_wrong_parameters_are_refused_before_a_model_is_loaded(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        build_pruner(name, **parameters)


@pytest.mark.parametrize(
    "name, written",
    [
        ("fastv", [{"budget": budget} for budget in (64, "64", " 64 ", np.int64(64), np.uint8(64), Fraction(64))]),
        ("fastv", [{"budget": budget} for budget in ("22.5%", " 22.50 %", "022.5%")]),
        ("fastv", [{"budget": budget} for budget in ("20%", "20.0%")]),
        ("fastv", [{"layer": layer} for layer in (3, np.int32(3))]),
        ("finepruner", [{"heads": heads} for heads in (8, np.int64(8))]),
        ("finepruner", [{"head_strategy": "fixed", "fixed_heads": f} for f in ("3+5", "5+3", " 3 + 5")]),
        ("finepruner", [{"head_strategy": "fixed", "fixed_heads": f} for f in (3, "3", np.int64(3))]),
        ("random", [{"seed": seed} for seed in (7, np.int64(7))]),
        ("vispruner", [{"important_ratio": ratio} for ratio in (1, 1.0, np.float64(1))]),
        ("divprune+fastv", [{"budget": 64, "first": first} for first in (128, "128", np.int64(128))]),
    ],
)
def test_equal_parameters_written_differently_are_one_pruner(name, written):
    """Also as text: what is written down of a pruner is the same, in plain Python types."""
    pruners = [build_pruner(name, **parameters) for parameters in written]
    assert len(set(pruners)) == 1
    texts = {json.dumps({"budget": pruner.budget} | pruner.parameters()) for pruner in pruners}
    assert len(texts) == 1
    assert len({repr(pruner) for pruner in pruners}) == 1


def test_different_budgets_are_different_pruners():
    budgets = [None, 64, 65, "64%", "6.4%", "100%"]
    assert len({build_pruner("fastv", budget=budget) for budget in budgets}) == len(budgets)
    assert [build_pruner("fastv", budget=b).budget for b in ("64%", "6.40%", "0.05%")] == ["64%", "6.4%", "0.05%"]


@pytest.mark.parametrize(
    "name, parameters, depth, message",
    [
        ("fastv", {"budget": 35}, 32, "35 visual tokens .* reachable: 36 to 576"),
        ("fastv", {"budget": 600}, 32, "reachable: 36 to 576"),
        ("fastv", {"budget": 50, "layer": 3}, 32, "reachable: 54 to 576"),
        ("fastv", {"budget": 128}, 8, "reachable: 144 to 576"),
        ("fastv", {"budget": 500, "layer": 8}, 8, "layer: got 8; this model has 8 layers"),
        ("random", {"budget": 577}, 32, "reachable: 1 to 576"),
        ("vanilla", {"budget": 64}, 32, "reachable: 576 to 576"),
    ],
)
def test_budgets_out_of_reach_state_the_range(name, parameters, depth, message):
    with pytest.raises(ValueError, match=message):
        build_pruner(name, **parameters).schedule(depth, 576)


def test_the_ends_of_the_range_are_reached():
    assert build_pruner("fastv", budget=36).schedule(32, 576) == [576] * 2 + [0] * 30
    assert build_pruner("fastv", budget=576).schedule(32, 576) == [576] * 32
    assert build_pruner("random", budget=1).schedule(4, 576) == [1] * 4
    assert build_pruner("vanilla", budget=576).schedule(4, 576) == [576] * 4


@pytest.mark.parametrize("depth", [6, 8, 24, 32, 40, 80])
@pytest.mark.parametrize("visual", [16, 144, 576, 577, 2880])
@pytest.mark.parametrize("share", ["50%", "35%", 100])
def test_schedules_average_to_the_budget(share, visual, depth):
    for name in ("fastv", "finepruner", "random", "uniform"):
        pruner = build_pruner(name, budget=share)
        budget = parse_budget(share).tokens(visual)
        try:
            schedule = pruner.schedule(depth, visual)
        except ValueError:
            assert budget > visual or budget < Fraction(2 * visual, depth)
            continue
        assert len(schedule) == depth and schedule == sorted(schedule, reverse=True)
        assert abs(Fraction(sum(schedule), depth) - budget) <= Fraction(1, 2)


def test_fastv_keeps_the_best_tokens_of_the_mean_row():
    attention = torch.tensor([[[0.1, 0.4, 0.0, 0.2], [0.1, 0.0, 0.0, 0.3]]])
    context = DecoderContext(2, attention, torch.tensor([[True, True, True, True]]))
    kept = build_pruner("fastv").select(context, 2).keep
    assert kept.tolist() == [[False, True, False, True]]


def test_finepruner_listens_to_the_chosen_heads_only():
    attention = torch.tensor([[[0.5, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.6], [0.2, 0.2, 0.2, 0.3]]])
    context = DecoderContext(2, attention, torch.ones(1, 4, dtype=torch.bool))
    chosen = build_pruner("finepruner", heads=1).select(context, 1)
    assert chosen.heads.tolist() == [[2]] and chosen.keep.tolist() == [[False, False, False, True]]
    assert select_heads(attention, "sum", 2).tolist() == [[2, 0]]
    torch.testing.assert_close(
        chosen.head_scores, torch.tensor([[0.8, 0.6, 0.9]], dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_fixed_heads_guide_whatever_they_look_at():
    attention = torch.tensor([[[0.5, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.6], [0.2, 0.3, 0.2, 0.2]]])
    context = DecoderContext(2, attention, torch.ones(1, 4, dtype=torch.bool))
    for named, best in (("0", 0), (1, 3), ("2", 1), ("0+2", 0), ("0+1+2", 3)):
        chosen = build_pruner("finepruner", head_strategy="fixed", fixed_heads=named).select(context, 1)
        assert chosen.keep[0].nonzero().tolist() == [[best]]
        assert chosen.heads.tolist() == [[int(head) for head in str(named).split("+")]]
        assert chosen.head_scores.sum() == chosen.heads.shape[1]
    with pytest.raises(ValueError, match=r"fixed_heads: got '3\+9'; the heads of this model are 0 to 7"):
        build_pruner("finepruner", head_strategy="fixed", fixed_heads="3+9").check_heads(8)


@pytest.mark.parametrize("guide", ["fastv", "pdrop"])
def test_recommended_is_every_head_with_an_equal_voice(guide):
    attention = torch.rand(3, 8, 50, generator=torch.Generator().manual_seed(0)) ** 3
    attention = attention * torch.linspace(0.1, 3, 8)[:, None]
    context = DecoderContext(2, attention, torch.ones(3, 50, dtype=torch.bool))
    chosen = build_pruner("finepruner", head_strategy="recommended", guide=guide).select(context, 20)
    wanted = build_pruner(guide, rows="renormalised", aggregate="max").select(context, 20)
    assert torch.equal(chosen.keep, wanted.keep) and chosen.heads.tolist() == [list(range(8))] * 3
    assert not torch.equal(chosen.keep, build_pruner(guide).select(context, 20).keep)


def test_equal_voices_undo_what_a_loud_head_does():
    loud = torch.tensor([0.3, 0.3, 0.2])
    quiet = torch.tensor([0.0, 0.0, 0.05])
    attention = torch.stack([loud, quiet])[None]
    assert int(token_scores(attention, "raw", "mean").argmax()) == 0
    assert int(token_scores(attention, "renormalised", "mean").argmax()) == 2
    assert token_scores(torch.zeros(1, 2, 3), "renormalised", "max").tolist() == [[0.0, 0.0, 0.0]]


def test_select_heads_refuses_nonsense():
    attention = torch.rand(2, 8, 16)
    for heads in (0, 9):
        with pytest.raises(ValueError, match="heads: got"):
            select_heads(attention, "sum", heads)
    with pytest.raises(ValueError, match="unknown strategy 'no'"):
        select_heads(attention, "no", 2)
    attention[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        select_heads(attention, "sum", 2)


def vision(batch=3, visual=576, seed=0):
    features = torch.randn(batch, visual, 8, generator=torch.Generator().manual_seed(seed))
    return fp.VisionOutputs(features, features)


@pytest.mark.parametrize("budget", [1, 63, 64, 113, 192, 575, 576, "22%"])
@pytest.mark.parametrize("name", ["random", "uniform"])
@pytest.mark.parametrize("visual", [576, 577])
def test_vision_side_methods_keep_exactly_their_budget(name, budget, visual):
    pruner = build_pruner(name, budget=budget)
    keep = pruner.select_visual(vision(visual=visual))
    assert keep.dtype == torch.bool and keep.shape == (3, visual)
    assert keep.sum(1).tolist() == [pruner.retained(visual)] * 3


def test_random_is_fair_and_independent():
    keep = torch.stack([build_pruner("random", budget=64, seed=s).select_visual(vision(64)) for s in range(8)]).float()
    share = keep.mean((0, 1))  # 512 draws of each token: standard deviation 0.014 around 1/9
    assert abs(float(share.mean()) - 1 / 9) < 1e-6 and float((share - 1 / 9).abs().max()) < 0.07
    both = (keep[0] * keep[1]).sum(1).mean()  # two seeds share 64/9 = 7.1 tokens of an image on average
    assert 6 < float(both) < 8.3


def test_grids_are_grids():
    for retained, shape in {64: (8, 8), 128: (8, 16), 192: (12, 16)}.items():
        places = grid_indices(576, retained).tolist()
        assert len({p // 24 for p in places}) == shape[0] and len({p % 24 for p in places}) == shape[1]
    for retained in range(1, 577):
        places = grid_indices(576, retained).tolist()
        assert len(set(places)) == retained and places == sorted(places) and places[0] >= 0 and places[-1] < 576


def test_a_grid_over_tiles_is_one_over_each():
    square = vision(visual=64)
    tiles = square.replace(tiled=True, sheets=((1, 4, 4), (1, 6, 8)))
    for budget in (1, 3, 17, 63):
        keep = build_pruner("uniform", budget=budget).select_visual(tiles)
        assert keep.sum(1).tolist() == [budget] * 3
        assert keep[0, :16].sum() == 16 * budget // 64
    whole = build_pruner("uniform", budget=16).select_visual(tiles)[0]
    assert torch.nonzero(whole[:16]).flatten().tolist() == grid_indices(16, 4).tolist() == [5, 7, 13, 15]
    assert torch.nonzero(whole[16:]).flatten().tolist() == grid_indices(48, 12, shape=(6, 8)).tolist()
    unknown = build_pruner("uniform", budget=16).select_visual(square.replace(tiled=True))[0]
    assert torch.nonzero(unknown).flatten().tolist() == list(range(2, 64, 4))


def test_ties_go_to_the_lower_index():
    assert top_mask(torch.zeros(1, 6), 2).tolist() == [[True, True, False, False, False, False]]
    present = torch.tensor([[False, True, False, True]])
    assert top_mask(torch.zeros(1, 4), 3, present).tolist() == present.tolist()


def test_fingerprints_tell_content_not_padding():
    ids = torch.tensor([[0, 0, 5, 6], [0, 0, 6, 5], [0, 5, 6, 7]])
    keys = fingerprint(ids, ids != 0)
    assert len(set(keys.tolist())) == 3
    short = torch.tensor([[5, 6]])
    assert int(fingerprint(short, short != 0)) == int(keys[0])
