"""HiPrune, HoloV, PruneSID, VScan and the baselines `blind` and `downsample`, on made-up images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import alone, prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.engine.vision_tower import encode_images
from finepruner_lmms.ops.grid import with_neighbours
from finepruner_lmms.ops.principal import orthonormal, principal_components, symmetric_eigenvectors
from finepruner_lmms.pruners.holov import parts_of, shares
from finepruner_lmms.pruners.prunesid import quotas
from finepruner_lmms.pruners.vision_outputs import TowerWish
from finepruner_lmms.pruners.vscan import best_of_each, windows
from finepruner_lmms.pruners.written import read_methods
from finepruner_lmms.testing import IMAGE, OPTIONS, VISUAL, rounding, vision_outputs
from finepruner_lmms.testing.families import FAMILIES, family_prompts, tiny_model


def places(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()


# -- hiprune ----------------------------------------------------------------------------------------------------------


def test_neighbours_end_at_the_edges_of_the_grid_of_each_frame_and_of_each_tile():
    mask = torch.zeros(1, 24, dtype=torch.bool)  # two frames of 3 rows × 4 columns
    mask[0, 3] = True  # the end of the first row: 4 begins the next one
    assert places(with_neighbours(mask, [(2, 3, 4)])[0]) == [2, 3, 7]
    mask = torch.zeros(1, 24, dtype=torch.bool)
    mask[0, 8] = True  # the last row of the first frame: 12 begins the second frame
    assert places(with_neighbours(mask, [(2, 3, 4)])[0]) == [4, 8, 9]
    mask = torch.zeros(1, 18, dtype=torch.bool)  # 3 rows × 4 columns, then 2 × 3 of another tile
    mask[0, [11, 12]] = True  # the last of the one, the first of the other
    assert places(with_neighbours(mask, [(1, 3, 4), (1, 2, 3)])[0]) == [7, 10, 11, 12, 13, 15]


def of_attention(middle: torch.Tensor, late: torch.Tensor) -> Any:
    """Images whose patches receive this, `[N]`, in both layers, of a tower without a CLS token."""
    vision = vision_outputs(1, len(late))
    return vision.replace(
        cls_attention=None, early_cls_attention=None,
        early_received=middle.expand(1, 2, -1), received_attention=late.expand(1, 2, -1),
    )  # fmt: skip


def test_hiprune_keeps_anchors_with_their_neighbours_and_the_best_of_the_late_layer():
    middle, late = torch.linspace(0.01, 0.02, 64), torch.linspace(0.02, 0.01, 64)
    middle[27] = 0.5
    kept = fp.build_pruner("hiprune", budget=8, alpha=0.625).select_visual(of_attention(middle, late))
    assert places(kept[0]) == [0, 1, 2, 19, 26, 27, 28, 35]


def test_of_anchors_and_neighbours_that_exceed_the_budget_neighbours_give_way():
    middle, late = torch.linspace(0.01, 0.02, 64), torch.linspace(0.02, 0.01, 64)
    middle[63] = 0.5  # a corner: it has two neighbours
    kept = fp.build_pruner("hiprune", budget=3, alpha=1.0).select_visual(of_attention(middle, late))
    assert places(kept[0]) == [55, 62, 63]
    one = fp.build_pruner("hiprune", budget=3, alpha=1.0, tower_layer=2)
    assert one.early_layer == 2 and one.stages(32, 576)[0].retained == 3


def test_tiles_are_chosen_from_where_their_grids_are_known_and_refused_where_not():
    vision = vision_outputs(1, 64).replace(tiled=True, projector=lambda tokens: tokens)
    for name in ("hiprune", "vscan"):
        before, _ = fp.build_pruner(name, budget=8).parts(64)
        with pytest.raises(ValueError, match=f"method: {name} needs to know the grids"):
            before.select_visual(vision)
        kept = before.select_visual(vision.replace(sheets=((1, 4, 4), (1, 6, 8))))
        assert kept.sum() == before.retained(64)


# -- holov ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [576, 100, 30, 16, 5])
def test_parts_hold_every_place_once_in_order(size):
    place, there = parts_of(size, 16, torch.device("cpu"))
    assert place[there].tolist() == list(range(size))
    assert set(there.sum(1).tolist()) <= {size // min(16, size), -(-size // min(16, size))}


def test_shares_are_rounded_down_and_the_rest_goes_to_the_largest():
    assert shares(torch.tensor([[5.0, 3.0, 2.0]]).double(), 7).tolist() == [[4, 2, 1]]  # 3.5, 2.1, 1.4


def test_a_part_that_gets_more_than_it_has_leaves_it_to_the_best_of_the_others():
    vision = vision_outputs(1, 64)
    attention = torch.linspace(0.001, 0.002, 64)
    attention[:4] = 1.0  # the first of 16 parts draws nearly the whole budget, and has four tokens
    kept = fp.build_pruner("holov", budget=16).select_visual(vision.replace(cls_attention=attention.expand(1, 4, -1)))
    assert places(kept[0]) == [0, 1, 2, 3, *range(52, 64)]


# -- prunesid ---------------------------------------------------------------------------------------------------------


def test_eigenvectors_are_those_of_numpy():
    for size in (1, 2, 7, 24):
        values = torch.randn(3, 40, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        matrix = values.mT @ values
        vectors, squares = symmetric_eigenvectors(matrix)
        torch.testing.assert_close(squares.sort(1).values, torch.linalg.eigvalsh(matrix), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(matrix @ vectors, vectors * squares[:, None], rtol=1e-9, atol=1e-9)


def test_a_basis_has_a_zero_for_what_is_spanned_already():
    vectors = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 2.0, 0.0]]], dtype=torch.float64)
    basis = orthonormal(vectors)[0]
    torch.testing.assert_close(basis.T @ basis, torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)))


def test_components_of_few_dimensions_are_found_exactly():
    """Where the data has no more dimensions than components are asked for, the algorithm is exact."""
    draw = np.random.default_rng(0)
    matrix = draw.normal(size=(50, 6)) @ np.diag([9, 7, 5, 3, 2, 1]) @ draw.normal(size=(6, 30))
    centred = matrix - matrix.mean(0)
    wanted = np.linalg.svd(centred, full_matrices=False)[2][:6].T
    found = principal_components(torch.from_numpy(matrix)[None], 6)[0].numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)


def test_quotas_are_the_budget_whatever_the_groups():
    generator = torch.Generator().manual_seed(0)
    for retained in (4, 15, 40, 64):
        groups = retained // 4
        size = torch.randint(0, 12, (50, groups), generator=generator)
        size[:, -1] += (retained - size.sum(1)).clamp(min=0)
        unlike = (size * torch.rand(50, groups, generator=generator)).ceil().long()
        for lead in (0, 1):
            quota = quotas(size, unlike, retained, lead)
            assert (quota.sum(1) == retained - lead).all() and ((quota >= 0) & (quota <= size)).all()


def test_prunesid_keeps_the_cls_token_and_repeats_its_draw():
    vision = vision_outputs(2, 64)
    pruner = fp.build_pruner("prunesid", budget=16)
    reduced = pruner.reduce(vision)
    torch.testing.assert_close(reduced.tokens[:, :1], vision.cls_projected)
    assert reduced.tokens.shape[1] == 16 and reduced.keep.sum(1).tolist() == [15, 15]
    assert torch.equal(reduced.keep, fp.build_pruner("prunesid", budget=16).reduce(vision).keep)
    without = fp.build_pruner("prunesid", budget=16, importance="norm").reduce(vision)
    assert without.lead == 0 and without.keep.sum(1).tolist() == [16, 16]


# -- vscan ------------------------------------------------------------------------------------------------------------


def test_vscan_at_64_is_96_tokens_and_then_32():
    assert fp.build_pruner("vscan", budget=64).schedule(32, 576) == [96] * 16 + [32] * 16
    assert fp.build_pruner("vscan", budget=128).schedule(40, 576) == [192] * 20 + [64] * 20
    for layer in (4, 12, 20):
        assert sum(fp.build_pruner("vscan", budget=64, layer=layer).schedule(32, 576)) / 32 == pytest.approx(
            64, abs=0.5
        )


def test_windows_are_six_by_six_and_each_gives_its_best():
    window, count = windows([(1, 24, 24)], torch.device("cpu"))
    assert count == 16 and window.bincount().tolist() == [36] * 16
    assert window.view(24, 24)[[0, 5, 6, 23], [0, 6, 0, 23]].tolist() == [0, 1, 4, 15]
    window, count = windows([(1, 6, 6), (1, 7, 12)], torch.device("cpu"))  # of two tiles
    assert count == 5 and window.bincount().tolist() == [36, 36, 36, 6, 6]
    scores = torch.tensor([[1.0, 5.0, 5.0, 2.0, 9.0]])
    assert best_of_each(scores, torch.tensor([0, 0, 0, 1, 0]), 2)[0].tolist() == [False, True, False, True, True]


def test_a_token_that_is_dropped_joins_the_nearest_kept_one_as_a_mean():
    vision = vision_outputs(1, 64).replace(projector=lambda tokens: tokens)
    before, _ = fp.build_pruner("vscan", budget=8).parts(64)
    reduced = before.reduce(vision)
    kept, features = places(reduced.keep[0]), vision.features[0].double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    joined: dict[int, list[int]] = {i: [i] for i in kept}
    for i in set(range(64)) - set(kept):
        joined[max(kept, key=lambda j: (unit[i] @ unit[j], -j))].append(i)
    wanted = np.stack([features[joined[i]].mean(0) for i in kept])
    np.testing.assert_allclose(reduced.tokens[0].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_merged_tokens_stand_at_their_places_where_a_row_shows_several_images():
    """Both ways into the decoder give the same answer: a shortened prompt, and a drop at the entrance."""
    model, pruner = tiny_llava(), fp.build_pruner("vscan", budget=8)
    inputs = prompts((5, 7), (2, 4))
    plain = fp.generate(model, pruner, inputs, **OPTIONS)
    more = prompts((3, 2), seed=4)
    row = torch.cat([more["input_ids"], more["input_ids"]], dim=1)  # a row that shows the same image twice
    left = row.shape[1] - inputs["input_ids"].shape[1]
    ids, mask = (torch.nn.functional.pad(inputs[name], (left, 0)) for name in ("input_ids", "attention_mask"))
    ids, mask = torch.cat([ids, row]), torch.cat([mask, torch.ones_like(row)])
    pixels = torch.cat([inputs["pixel_values"], more["pixel_values"], more["pixel_values"]])
    mixed = fp.generate(model, pruner, {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, **OPTIONS)
    for ours, alone_ in zip(mixed.logits, plain.logits, strict=True):
        torch.testing.assert_close(ours[:2], alone_, **rounding())


# -- the tower's early layers -----------------------------------------------------------------------------------------


def test_attention_of_another_layer_than_the_method_reads_is_refused():
    model, inputs = tiny_llava(), prompts((5, 7))
    vision = encode_images(model, inputs.pop("pixel_values"), TowerWish(received=True, early=1))
    given = inputs | {"vision": vision}
    assert fp.generate(model, fp.build_pruner("hiprune", budget=8, tower_layer=1), given, **OPTIONS)
    with pytest.raises(ValueError, match=r"vision: method 'hiprune' reads another layer of the tower"):
        fp.generate(model, fp.build_pruner("hiprune", budget=8, tower_layer=2), given, **OPTIONS)


def test_methods_of_several_wishes_answer_together_as_alone():
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    names = [("hiprune", 8), ("vscan", 8), ("blind", None), ("holov", 8), ("hiprune", 4)]
    pruners = [fp.build_pruner(name, **({} if budget is None else {"budget": budget})) for name, budget in names]
    pruners[1] = fp.build_pruner("vscan", budget=8, tower_layer=1)
    pruners[0], pruners[4] = (fp.build_pruner("hiprune", budget=budget, tower_layer=1) for budget in (8, 4))
    together = answer_together(model, pruners, inputs, max_new_tokens=3, do_sample=False)
    for pruner, outcome in zip(pruners, together.outcomes, strict=True):
        assert not isinstance(outcome, Exception), outcome
        single = fp.generate(model, pruner, inputs, **OPTIONS)
        assert torch.equal(outcome.sequences, single.sequences), pruner.name
        assert outcome.trace.tokens_entering == single.trace.tokens_entering


# -- blind and downsample ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["eager", "graphs"])
def test_blind_answers_as_the_text_alone(execution):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    found = fp.generate(model, fp.build_pruner("blind"), inputs, execution=execution, **OPTIONS)
    assert found.trace.tokens_entering == [[0] * 6] * 3 and [len(kept) for kept in found.trace.kept[0]] == [0] * 3
    for row in range(3):
        ids = alone(inputs, row)["input_ids"]
        words = ids[ids != IMAGE][None]
        text = model.generate(
            input_ids=words, attention_mask=torch.ones_like(words), return_dict_in_generate=True, **OPTIONS
        )
        for ours, theirs in zip(found.logits, text.logits, strict=True):
            torch.testing.assert_close(ours[row], theirs[0], **rounding())


@pytest.mark.parametrize("execution", ["eager", "graphs"])
def test_the_tower_runs_only_where_somebody_looks_at_the_image(execution, monkeypatch):
    model, inputs, ran = tiny_llava(), prompts((5, 7), 11, (2, 4)), []
    encode = model.model.vision_tower.forward
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda *a, **k: ran.append(1) or encode(*a, **k))
    blind, other = fp.build_pruner("blind"), fp.build_pruner("uniform", budget=5)
    fp.generate(model, blind, inputs, execution=execution, **OPTIONS)
    answer_together(model, [blind, blind], inputs, max_new_tokens=3, do_sample=False)
    assert not ran
    fp.generate(model, other, inputs, execution=execution, **OPTIONS)
    answer_together(model, [blind, other], inputs, max_new_tokens=3, do_sample=False)
    assert len(ran) == 2


@pytest.mark.parametrize("which", [which for which in FAMILIES if "-" not in which])
def test_blind_shows_no_family_a_visual_token(which):
    trace = fp.generate(
        tiny_model(which), fp.build_pruner("blind"), family_prompts(which, (3, "a", 4)), max_new_tokens=1
    ).trace
    assert set(trace.tokens_entering[0]) == {0}


def test_blind_takes_no_budget_and_needs_none():
    for budget in (64, "22%", VISUAL):
        with pytest.raises(ValueError, match=r"budget: got .*blind shows the model no visual token"):
            fp.build_pruner("blind", budget=budget)
    assert [pruner.budget for _, pruner in read_methods(["blind", "fastv"], 64)] == [None, 0, 64]
    with pytest.raises(ValueError, match=r"method: got 'blind\+fastv'; 'blind' leaves nothing to prune"):
        fp.build_pruner("blind+fastv", budget=8, first=12)
    with pytest.raises(ValueError, match="expected a positive number of visual tokens"):
        fp.build_pruner("fastv", budget=0)


def test_downsample_averages_before_the_projector_and_pool_behind_it():
    vision = vision_outputs(2, 64)
    small, pooled = (fp.build_pruner(name, budget=16).reduce(vision).tokens for name in ("downsample", "pool"))
    torch.testing.assert_close(small, pooled, rtol=1e-4, atol=1e-4)  # one and the same behind a linear map
    curved = vision.replace(projector=torch.square, projected=vision.features.square())
    small = fp.build_pruner("downsample", budget=16).reduce(curved).tokens
    corner = vision.features[:, [0, 1, 8, 9]].mean(1).square()
    torch.testing.assert_close(small[:, 0], corner, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"downsample makes grids, and 13 tokens are no rows"):
        fp.build_pruner("downsample", budget=13).schedule(32, 576)
