"""Methods that rank by the CLS token of the tower, on towers that have none, and what stands in for it."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from conftest import prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.engine.families.fits import check_fits
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.importance import IMPORTANCES
from finepruner_lmms.testing import vision_outputs
from finepruner_lmms.testing.families import FAMILIES, family_prompts, tiny_model

METHODS = ("fastervlm", "vispruner", "visionzip")
WITHOUT_CLS = ("llava_onevision", "qwen2_5_vl", "qwen3_vl")


def outputs(**changes: Any) -> fp.VisionOutputs:
    vision = vision_outputs(2, 64)
    attention = vision.cls_attention
    assert attention is not None
    return vision.replace(received_attention=attention.flip(2), **changes)


@pytest.mark.parametrize("name", METHODS)
def test_the_cls_token_is_the_default(name: str) -> None:
    vision = outputs()
    named = fp.build_pruner(name, budget=16, importance="cls").select_visual(vision)
    assert torch.equal(fp.build_pruner(name, budget=16).select_visual(vision), named)


def test_received_ranks_by_the_attention_that_tokens_receive() -> None:
    vision = outputs()
    kept = fp.build_pruner("fastervlm", budget=16, importance="received").select_visual(vision)
    assert torch.equal(kept, fp.build_pruner("fastervlm", budget=16).select_visual(vision).flip(1))


def test_norm_ranks_by_the_length_of_features() -> None:
    vision = outputs(cls_attention=None)
    kept = fp.build_pruner("fastervlm", budget=5, importance="norm").select_visual(vision)
    for row, features in zip(kept, vision.features, strict=True):
        lengths = (features.double() ** 2).sum(-1).sqrt()
        assert lengths[row].min() > lengths[~row].max()


@pytest.mark.parametrize("importance", ["received", "norm"])
def test_visionzip_without_cls_keeps_one_more_patch_and_no_cls_token(importance: str) -> None:
    vision = outputs(cls_attention=None, cls_projected=None)
    zipped = fp.build_pruner("visionzip", budget=32, importance=importance)
    reduced = zipped.reduce(vision)
    assert reduced.lead == 0
    assert reduced.tokens.shape[1] == 32
    assert reduced.keep.sum(1).tolist() == [27, 27]  # and 5 contextual ones, as of 10 in 64
    with_cls = fp.build_pruner("visionzip", budget=32).reduce(vision_outputs(1, 64))
    assert (with_cls.lead, int(with_cls.keep.sum())) == (1, 26)


def test_an_importance_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"importance: got 'clss'.*cls"):
        fp.build_pruner("vispruner", budget=8, importance="clss")
    with pytest.raises(ValueError, match="importance: method 'divprune' does not read it"):
        fp.build_pruner("divprune", budget=8, importance="norm")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("which", WITHOUT_CLS)
def test_a_family_without_cls_token_refuses_it_with_what_to_take_instead(which: str, name: str) -> None:
    inputs = family_prompts(which, (3, "a", 2))
    with pytest.raises(FieldError, match=r"importance: 'cls'.*no CLS token.*importance=received"):
        fp.generate(tiny_model(which), fp.build_pruner(name, budget=4), inputs, max_new_tokens=1)


def test_relevance_by_clip_is_refused_where_the_tower_is_not_clips() -> None:
    for which in ("llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"):
        with pytest.raises(FieldError, match=r"relevance: 'clip'.*relevance=embedding"):
            check_fits(find_family(which), fp.build_pruner("cdpruner", budget=4))
        check_fits(find_family(which), fp.build_pruner("cdpruner", budget=4, relevance="embedding"))
    check_fits(find_family("llava_next"), fp.build_pruner("cdpruner", budget=4))


def test_what_a_family_cannot_do_is_known_before_a_model_is_loaded() -> None:
    qwen, internvl = find_family("qwen2_5_vl"), find_family("internvl")
    for name in ("visionzip", "pool"):
        parameters = {"importance": "norm"} if name == "visionzip" else {}
        with pytest.raises(FieldError, match=r"method: .*new tokens"):
            check_fits(qwen, fp.build_pruner(name, budget=4, **parameters))
    with pytest.raises(FieldError, match=r"importance: .*four patches"):
        check_fits(internvl, fp.build_pruner("visionzip", budget=4))
    with pytest.raises(FieldError, match="positions"):
        check_fits(qwen, fp.build_pruner("fastv", budget="50%", positions="renumbered"))
    with pytest.raises(FieldError, match="importance"):
        check_fits(qwen, fp.build_pruner("vispruner+fastv", budget=4, first=6))
    check_fits(internvl, fp.build_pruner("vispruner", budget=4))
    check_fits(qwen, fp.build_pruner("vanilla"))


def fitting() -> list[tuple[str, str, str]]:
    """Families, methods and importances that go together."""
    found = []
    for case in itertools.product(FAMILIES, METHODS, IMPORTANCES):
        which, name, importance = case
        with contextlib.suppress(FieldError):
            check_fits(find_family(which.partition("-")[0]), fp.build_pruner(name, budget=4, importance=importance))
            found.append(case)
    return found


def test_where_the_cls_token_is_missing_two_importances_are_left() -> None:
    left = {case for case in fitting() if case[0] in WITHOUT_CLS}
    grids = [which for which in WITHOUT_CLS if which.startswith("qwen")]
    assert left == {
        case
        for case in itertools.product(WITHOUT_CLS, METHODS, ("received", "norm"))
        if not (case[0] in grids and case[1] == "visionzip")
    }


@pytest.mark.parametrize(("which", "name", "importance"), fitting())
def test_images_of_every_family_are_pruned_by_what_its_tower_says(which: str, name: str, importance: str) -> None:
    model = tiny_model(which)
    pruner = fp.build_pruner(name, budget=4, importance=importance)
    rows = [(5, "a", 3), (2, "b", 3)] if which == "llava" else [(5, "a", 3, "b", 2), (3,), (2, "a", 4)]
    found = fp.generate(model, pruner, family_prompts(which, *rows), max_new_tokens=2)
    images = [sum(isinstance(part, str) for part in row) for row in rows]
    assert [row[0] for row in found.trace.tokens_entering] == [4 * count for count in images]


def test_llava_1_5_takes_received_attention_too() -> None:
    model, inputs = tiny_llava(), prompts((5, 7))
    pruner = fp.build_pruner("fastervlm", budget=8, importance="received")
    trace = fp.generate(model, pruner, inputs, max_new_tokens=1).trace
    tower = tiny_llava("eager").model.vision_tower
    maps = tower(inputs["pixel_values"], output_attentions=True).attentions[-2]
    scores = maps[:, :, 1:, 1:].mean((1, 2))
    wanted = [row.topk(8).indices.sort().values.tolist() for row in scores]
    assert [row.tolist() for row in trace.kept[0]] == wanted


def test_uniform_spreads_over_a_picture_that_is_no_square() -> None:
    vision = fp.VisionOutputs(torch.rand(1, 6 * 12, 8), torch.rand(1, 6 * 12, 8), grid=(1, 6, 12))
    (kept,) = fp.build_pruner("uniform", budget=8).select_visual(vision)
    assert kept.view(6, 12).nonzero().tolist() == [[row, column] for row in (1, 4) for column in (1, 4, 7, 10)]


@pytest.mark.parametrize("shape", [(1, 7, 3), (1, 3, 7), (4, 5, 5), (1, 40, 2), (1, 2, 40), (1, 1, 9)])
def test_uniform_keeps_its_budget_on_any_grid(shape: tuple[int, int, int]) -> None:
    count = shape[0] * shape[1] * shape[2]
    tokens = torch.rand(1, count, 4)
    for budget in range(1, count):
        kept = fp.build_pruner("uniform", budget=budget).select_visual(fp.VisionOutputs(tokens, tokens, grid=shape))
        assert int(kept.sum()) == budget


def test_tiles_that_could_be_a_square_are_not_taken_for_one() -> None:
    """Four tiles of 16 × 16 have as many tokens as one square of 32 × 32."""
    tokens = torch.rand(1, 1024, 4)
    square, tiles = fp.VisionOutputs(tokens, tokens), fp.VisionOutputs(tokens, tokens, tiled=True)
    pool, uniform = fp.build_pruner("pool", budget=64), fp.build_pruner("uniform", budget=64)
    assert pool.reduce(square).tokens.shape == (1, 64, 4)
    for vision in (tiles, fp.VisionOutputs(tokens, tokens, grid=(4, 16, 16))):
        with pytest.raises(FieldError, match="pool needs a square"):
            pool.reduce(vision)
    (kept,) = uniform.select_visual(tiles)
    assert kept.nonzero().flatten().tolist() == list(range(8, 1024, 16))


def test_families_say_which_images_are_tiled() -> None:
    model = tiny_model("internvl")
    inputs = family_prompts("internvl", (5, "a", 3, "b", 2))
    tiles = len(inputs["pixel_values"])
    side = find_family("internvl").tile_side(model.config)  # type: ignore[attr-defined]
    counts = [(tiles - 1) * side**2, side**2]
    found = find_family("internvl").encode(model, {"pixel_values": inputs["pixel_values"]}, counts)
    assert [image.tiled for image in found.images] == [tiles > 2, False]
    assert [image.grid for image in found.images][1] == (1, side, side)
