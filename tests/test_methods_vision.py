"""Vision-side methods: recorded references, worked examples, and what their papers promise."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import references
import torch
from conftest import IMAGE, prompts, tiny_llava
from safetensors.torch import load_file

import finepruner_lmms as fp
from finepruner_lmms.pruners.cdpruner import conditional_kernel, greedy_map, mean_similarity, scale_relevance
from finepruner_lmms.pruners.divprune import farthest_points
from finepruner_lmms.pruners.visionzip import merge_into_targets
from finepruner_lmms.pruners.vispruner import diverse_tokens
from finepruner_lmms.testing import build, no_host_sync, one_image, vision_outputs

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "vision.json").read_text())
TOY = torch.tensor([(1, 0), (0, 1), (1, 0.1), (1, 0.2), (0, 1), (0.1, 1), (-1, 0), (0.3, 1)])[None]
TOY_ATTENTION = torch.arange(8.0, 0, -1)[None, None]


def toy():
    return fp.VisionOutputs(TOY, TOY, cls_attention=TOY_ATTENTION)


def kept(pruner, vision) -> list[int]:
    return pruner.select_visual(vision)[0].nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("batched", [False, True], ids=["alone", "in a batch"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['method']}-{c['budget']}-{c.get('important_ratio')}")
def test_equals_reference(case, batched):
    tensors = load_file(GOLDEN / "vision.safetensors")
    part = {name.partition(".")[2]: value for name, value in tensors.items()}
    vision = fp.VisionOutputs(
        part["features"],
        part["features"] @ part["projector"],
        cls_attention=part["cls_attention"],
        image_embeds=part["image_embeds"],
        text_embeds=[part["text_embeds"]],
    )
    if batched:
        other = vision.replace(
            **{name: value.flip(1 if value.ndim == 3 and name != "cls_attention" else -1) * 1.5
               for name, value in vision.tensors().items() if name != "text_embeds"}
        )  # fmt: skip
        vision = fp.VisionOutputs.join([other, vision])
    parameters = {key: case[key] for key in ("important_ratio",) if key in case}
    pruner = fp.build_pruner(case["method"], budget=case["budget"], **parameters)
    assert pruner.select_visual(vision)[-1].nonzero().squeeze(1).tolist() == case["keep"]


@pytest.mark.parametrize(
    "ratio, expected", [(0.5, [0, 1, 3, 5]), (0.25, [0, 2, 4, 6]), (1, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_vispruner_by_hand(ratio, expected):
    assert kept(fp.build_pruner("vispruner", budget=4, important_ratio=ratio), toy()) == expected


@pytest.mark.parametrize("budget", [1, 7, 32, 64, 113, 128, 192, 575])
def test_vispruner_with_ratio_1_is_fastervlm(budget):
    vision = vision_outputs(2, 576)
    one = fp.build_pruner("vispruner", budget=budget, important_ratio=1).select_visual(vision)
    assert torch.equal(one, fp.build_pruner("fastervlm", budget=budget).select_visual(vision))


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("budget", [16, 32, 64, 65, 128])
def test_vispruner_equals_a_plain_loop(budget, ratio):
    """Odd counts and budgets at which the released code stops are among these."""
    pruner = fp.build_pruner("vispruner", budget=budget, important_ratio=ratio)
    vision = vision_outputs(2, 144, seed=budget)
    keep = pruner.select_visual(vision)
    for row in range(2):
        found = keep[row].nonzero().squeeze(1).tolist()
        assert found == references.vispruner(pruner, one_image(vision, row), budget)
        important = references.best(references.array(one_image(vision, row).cls_attention).mean(0), int(budget * ratio))
        assert set(important) <= set(found)


def test_a_duplicate_goes_in_the_first_round():
    features = torch.eye(6)[None].clone()
    features[0, 3] = features[0, 2]  # places 2 (even) and 3 (odd) look alike
    assert sorted(diverse_tokens(features, 5)[0].tolist()) == [0, 1, 3, 4, 5]


def test_divprune_by_hand():
    unit = TOY.double() / TOY.double().norm(dim=-1, keepdim=True)
    assert farthest_points(1 - unit @ unit.transpose(1, 2), 4)[0].tolist() == [6, 0, 1, 7]
    assert farthest_points(torch.zeros(1, 1, 1), 1).tolist() == [[0]]


def test_divprune_never_repeats_a_duplicate():
    tokens = torch.randn(1, 8, 4).repeat(1, 4, 1)
    vision = fp.VisionOutputs(tokens, tokens)
    assert int(fp.build_pruner("divprune", budget=20).select_visual(vision).sum()) == 20


def determinants(kernel: np.ndarray, picked: list[int]) -> list[float]:
    size = len(kernel)
    return [-np.inf if i in picked else np.linalg.det(kernel[np.ix_([*picked, i], [*picked, i])]) for i in range(size)]


def test_every_greedy_pick_has_the_largest_determinant():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = torch.randn(2, 9, 12, generator=generator, dtype=torch.float64)
        relevance = torch.rand(2, 9, generator=generator, dtype=torch.float64) + 0.1
        kernel = conditional_kernel(tokens, relevance)
        picks = greedy_map(kernel, 9)
        for row in range(2):
            order = picks[row].tolist()
            for step in range(9):
                assert order[step] == int(np.argmax(determinants(kernel[row].numpy(), order[:step])))


def test_greedy_map_by_hand():
    tokens = torch.tensor([[(1, 0), (0.8, 0.6), (0, 1)]], dtype=torch.float64)
    kernel = conditional_kernel(tokens, torch.tensor([[1, 0.9, 0.5]]))
    expected = torch.tensor([[1, 0.72, 0], [0.72, 0.81, 0.27], [0, 0.27, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(kernel[0], expected, rtol=1e-6, atol=1e-6)
    assert greedy_map(kernel, 3).tolist() == [[0, 1, 2]]  # the third gains nothing and is there nevertheless


def test_picks_nest_and_scale_and_permute():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 60, 80, generator=generator)
    relevance = torch.rand(1, 60, generator=generator) + 0.1
    picks = greedy_map(conditional_kernel(tokens, relevance), 40)[0].tolist()
    assert greedy_map(conditional_kernel(tokens, relevance), 15)[0].tolist() == picks[:15]
    assert greedy_map(conditional_kernel(tokens, 7 * relevance), 40)[0].tolist() == picks
    assert picks[0] == int(relevance.argmax())
    order = torch.randperm(60, generator=generator)
    moved = greedy_map(conditional_kernel(tokens[:, order], relevance[:, order]), 40)[0]
    assert order[moved].tolist() == picks
    alike = torch.eye(60)[None]
    assert sorted(greedy_map(conditional_kernel(alike, relevance), 9)[0].tolist()) == sorted(
        relevance[0].topk(9).indices.tolist()
    )


@pytest.mark.parametrize("count", [64, 128, 192, 576])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_more_tokens_than_rank_are_still_different_tokens(count, noise):
    """In float32, residuals turn negative here, and the released code returns fewer tokens than asked."""
    generator = torch.Generator().manual_seed(2)
    low = torch.randn(2, 576, 64, generator=generator) @ torch.randn(64, 256, generator=generator)
    tokens = low + noise * torch.randn(2, 576, 256, generator=generator)
    tokens[:, 300:] = tokens[:, :276]
    picks = greedy_map(conditional_kernel(tokens, torch.rand(2, 576, generator=generator) + 1e-6), count)
    assert [len(set(row)) for row in picks.tolist()] == [count] * 2
    if count <= 64:  # a duplicate never precedes a token that still gains something
        assert all(len({pick % 300 for pick in row}) == count for row in picks.tolist())


def test_exhausted_tokens_follow_by_relevance():
    tokens = torch.tensor([[(1.0, 0.0)] * 3 + [(0.0, 1.0)] * 3])
    relevance = torch.tensor([[0.5, 0.9, 0.3, 0.2, 0.8, 0.7]])
    assert greedy_map(conditional_kernel(tokens, relevance), 6).tolist() == [[1, 4, 5, 0, 2, 3]]


def test_relevance_of_an_image_does_not_depend_on_the_batch():
    values = torch.tensor([[0.1, 0.2, 0.3], [10.0, 20.0, 30.0], [5.0, 5.0, 5.0]])
    scaled = scale_relevance(values)
    torch.testing.assert_close(scaled[0], scaled[1], rtol=1e-4, atol=1e-4)
    assert scaled[2].tolist() == [1, 1, 1] and 0 < float(scaled[0, 0]) < 1e-4


def test_relevance_sign_changes_the_choice():
    vision = vision_outputs(1, 64)
    vision = vision.replace(image_embeds=vision.projected)
    by_clip = kept(fp.build_pruner("cdpruner", budget=16), vision)
    assert by_clip != kept(fp.build_pruner("cdpruner", budget=16, relevance="embedding"), vision)
    texts = vision.text_embeds
    assert torch.allclose(mean_similarity(vision.projected, texts), -mean_similarity(-vision.projected, texts))


def test_visionzip_adds_a_target_and_the_mean_of_those_that_join_it():
    features = torch.tensor([[[1.0, 0], [0, 1], [2, 0], [0, 3], [4, 0]]])
    # targets are places 0 and 2; 1 and 3 have no likeness to either and join the first, 4 the first of two alike
    merged = merge_into_targets(features, features, 2)
    mean = features[0, [1, 3, 4]].mean(0)
    torch.testing.assert_close(merged[0].float(), torch.stack([features[0, 0] + mean, features[0, 2]]))


def test_visionzip_makes_its_budget():
    for budget, merged in {64: 10, 128: 20, 192: 30, 1: 0, 2: 0, 4: 1}.items():
        pruner, vision = fp.build_pruner("visionzip", budget=budget), vision_outputs(2, 576)
        reduced = pruner.reduce(vision)
        assert reduced.tokens.shape[1] == budget and reduced.keep.sum(1).tolist() == [budget - merged - 1] * 2
        torch.testing.assert_close(reduced.tokens[:, :1], vision.cls_projected)
        own = reduced.tokens[:, 1 : budget - merged]
        torch.testing.assert_close(own[1], vision.projected[1][reduced.keep[1]])


@pytest.mark.parametrize("budget, rows, columns", [(16, 4, 4), (8, 2, 4), (15, 3, 5), (1, 1, 1), (64, 8, 8)])
def test_pool_averages_the_grid(budget, rows, columns):
    """Each token is the mean of its part of the 8×8 patches; parts share a patch where they do not divide evenly."""
    vision = vision_outputs(1, 64)
    reduced = fp.build_pruner("pool", budget=budget).reduce(vision)
    grid = vision.projected[0].double().view(8, 8, -1).numpy()
    for y in range(rows):
        for x in range(columns):
            tall = slice(y * 8 // rows, -(-(y + 1) * 8 // rows))
            wide = slice(x * 8 // columns, -(-(x + 1) * 8 // columns))
            found = reduced.tokens[0, y * columns + x].numpy()
            np.testing.assert_allclose(found, grid[tall, wide].mean((0, 1)), rtol=1e-4, atol=1e-4)
    assert reduced.tokens.shape[1] == budget and not reduced.keep.any()


def test_pool_makes_grids_only():
    with pytest.raises(ValueError, match=r"budget: got 61; pool makes grids.* 60 and 63"):
        fp.build_pruner("pool", budget=61).schedule(32, 576)
    with pytest.raises(ValueError, match="square grid"):
        fp.build_pruner("pool", budget=60).schedule(32, 577)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_cls_row_is_what_eager_attention_computes(attention):
    model, inputs = tiny_llava(attention), prompts((5, 7), (2, 4))
    encoded = fp.encode_images(model, inputs["pixel_values"])
    tower = tiny_llava("eager").model.vision_tower
    outputs = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(encoded.cls_attention, outputs.attentions[-2][:, :, 0, 1:], rtol=1e-5, atol=1e-6)
    assert bool((encoded.cls_attention.sum(-1) < 1).all())
    torch.testing.assert_close(encoded.features, outputs.hidden_states[-2][:, 1:])
    projector = model.model.multi_modal_projector
    torch.testing.assert_close(encoded.cls_projected, projector(outputs.hidden_states[-2][:, :1]))


def test_a_tower_without_cls_token_is_refused_by_who_needs_it():
    vision = vision_outputs(1, 64).replace(cls_attention=None)
    for name in ("fastervlm", "vispruner", "visionzip"):
        with pytest.raises(ValueError, match=f"cls_attention: method '{name}' needs it"):
            fp.build_pruner(name, budget=16).select_visual(vision)
    with pytest.raises(ValueError, match="text_embeds: method 'cdpruner' needs it"):
        fp.build_pruner("cdpruner", budget=16).select_visual(vision.replace(text_embeds=None))


def test_the_guard_against_host_synchronisation_notices_it():
    values = torch.rand(4)
    for ask in (
        lambda: values.sum().item(),
        lambda: values.tolist(),
        lambda: values[values > 0.5],
        lambda: values.nonzero(),
        lambda: bool(values.any()),
        lambda: values.masked_select(values > 0.5),
    ):
        with pytest.raises(RuntimeError, match="reads a value"), no_host_sync():
            ask()


def test_every_token_merged_or_kept_reaches_the_model():
    """VisionZip's own tokens in the trace are those of the image, though the CLS token stands before them."""
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    pruner = fp.build_pruner("visionzip", budget=8)
    trace = fp.generate(model, pruner, inputs, max_new_tokens=1).trace
    vision = fp.encode_images(model, inputs["pixel_values"])
    expected = [row.nonzero().squeeze(1).tolist() for row in pruner.select_visual(vision)]
    assert [row.tolist() for row in trace.kept[0]] == [expected[0], [], expected[1]]
    assert trace.tokens_entering == [[8] * 6, [0] * 6, [8] * 6]
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == [16, 0, 16]
    assert all(a < b for row in expected for a, b in pairwise(row))


def test_without_text_every_token_is_equally_relevant():
    """Then diversity alone decides, in rows without text and in these only."""
    vision = vision_outputs(2, 64)
    vision = vision.replace(text_embeds=[vision.text_embeds[0][:0], vision.text_embeds[1]])
    for relevance in ("embedding", "clip"):
        seen = vision if relevance == "embedding" else vision.replace(image_embeds=vision.projected)
        found = fp.build_pruner("cdpruner", budget=16, relevance=relevance).select_visual(seen)
        diverse = fp.build_pruner("cdpruner", budget=16, relevance="none").select_visual(seen)
        assert torch.equal(found[0], diverse[0]) and not torch.equal(found[1], diverse[1])
        assert found[0].nonzero().squeeze(1).tolist() != list(range(16))


def test_cdpruner_on_prompts_that_end_with_the_image():
    model, inputs = tiny_llava(), prompts((5, 0), 11, (2, 4), (3, 0))
    found = fp.generate(model, fp.build_pruner("cdpruner", budget=8, relevance="embedding"), inputs, max_new_tokens=1)
    diverse = fp.generate(model, fp.build_pruner("cdpruner", budget=8, relevance="none"), inputs, max_new_tokens=1)
    for row in (0, 3):
        assert torch.equal(found.trace.kept[0][row], diverse.trace.kept[0][row])
    assert not torch.equal(found.trace.kept[0][2], diverse.trace.kept[0][2])


@pytest.mark.parametrize("name", ["divprune", "random", "visionzip"])
def test_a_prompt_that_ends_with_a_shortened_image(name):
    """The model reads what the kept tokens alone make of the prompt; its last token is the last that was kept."""
    model, inputs, pruner = tiny_llava(), prompts((5, 0)), fp.build_pruner(name, budget=6)
    result = fp.generate(model, pruner, inputs, max_new_tokens=1, output_logits=True)
    vision = fp.encode_images(model, inputs["pixel_values"])
    left = (
        pruner.reduce(vision).tokens[0]
        if name == "visionzip"
        else model.get_image_features(inputs["pixel_values"]).pooler_output[0][result.trace.kept[0][0]]
    )
    words = model.get_input_embeddings()(inputs["input_ids"][:, :5])
    plain = model.model.language_model(inputs_embeds=torch.cat([words, left[None]], 1)).last_hidden_state[:, -1]
    torch.testing.assert_close(result.logits[0], model.lm_head(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["divprune", "random", "visionzip", "fastv", "divprune+fastv", "cdpruner"])
def test_padding_is_found_without_a_mask(name):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    parameters = {"relevance": "embedding"} if name == "cdpruner" else {"first": 10} if "+" in name else {}
    pruner = fp.build_pruner(name, budget=8, **parameters)
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with_mask, without = (
        fp.generate(model, pruner, given, max_new_tokens=3, do_sample=False, output_logits=True)
        for given in (inputs, bare)
    )
    assert torch.equal(torch.stack(with_mask.logits), torch.stack(without.logits))
    with pytest.raises(ValueError, match=r"attention_mask: missing.*which pads and ends answers"):
        fp.generate(model, pruner, bare, max_new_tokens=1, eos_token_id=0)


@pytest.mark.parametrize("name", [name for name in fp.METHODS if fp.build_pruner(name).side == "vision"])
def test_autocast_changes_no_choice(name):
    """In bfloat16, divprune keeps 16 of 64 of the same tokens."""
    pruner, vision = build(name, budget=144), vision_outputs(2, 576)
    plain = pruner.select_visual(vision)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pruner.select_visual(vision), plain)


def test_divprune_starts_with_the_lower_of_two_tokens_that_are_each_others_nearest():
    """Their distances to their nearest are one number, whichever way a product of matrices has rounded it."""
    distance = torch.tensor([[[0.0, 0.2, 0.9, 0.9], [0.2, 0.0, 0.9, 0.9], [0.9, 0.9, 0.0, 0.5], [0.9, 0.9, 0.5, 0.0]]])
    for low, high in ((2, 3), (3, 2)):
        rounded = distance.clone()
        rounded[0, low, high] = torch.nextafter(rounded[0, low, high], torch.tensor(1.0))
        assert farthest_points(rounded, 2)[0].tolist()[0] == 2
