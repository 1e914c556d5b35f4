"""HAWK: the first layer's queries and keys before rotation, and its head weights."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from brute_force import best
from conftest import IMAGE, VISUAL, alone, prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.engine.first_layer import FirstLayer
from finepruner_lmms.heads.profile import HeadProfile, profile_json
from finepruner_lmms.testing import choose_without_host_copy, vision_outputs
from finepruner_lmms.testing.samples import rounding


@pytest.fixture
def weights(tmp_path):
    """Of the eight heads of a small model: most for the fourth, none for the first."""
    path = tmp_path / "weights.json"
    named = ((0, 3, 0.6), (0, 1, 0.3), (0, 6, 0.1))
    path.write_text(json.dumps(profile_json(HeadProfile("w", "m", "t", "s", 6, 8, named))))
    return str(path)


def published(model, row, weights):
    """The scores of one row by the formula, from the model's own modules."""
    layer, ids = model.model.language_model.layers[0], row["input_ids"][0]
    words = model.get_input_embeddings()(ids[(ids == IMAGE).nonzero()[-1] + 1 :])
    tokens = model.get_image_features(row["pixel_values"]).pooler_output[0]
    queries = layer.self_attn.q_proj(layer.input_layernorm(words)).unflatten(-1, (8, 8)).double()
    keys = layer.self_attn.k_proj(layer.input_layernorm(tokens)).unflatten(-1, (4, 8)).double()
    total = torch.zeros(VISUAL, dtype=torch.float64)
    for head, weight in weights.items():
        asked = (queries[:, head] @ keys[:, head // 2].T).mean(0) / 8**0.5
        total += weight * asked / asked.norm()
    return total


@pytest.mark.parametrize("kind", ["uniform", "file"])
@torch.no_grad()
def test_in_a_model_it_keeps_what_the_formula_says(kind, weights):
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    pruner = fp.build_pruner("hawk", budget=5, weights=weights if kind == "file" else "uniform")
    kept = fp.generate(model, pruner, inputs, max_new_tokens=1).trace.kept[0]
    counts = {3: 0.6, 1: 0.3, 6: 0.1} if kind == "file" else dict.fromkeys(range(8), 1 / 8)
    for row in (0, 2):
        scores = published(model, alone(inputs, row), counts)
        assert kept[row].tolist() == best(scores, list(range(VISUAL)), 5)


@pytest.mark.parametrize("kind", ["plain", "with a bias", "normalised per head", "another module", "half precision"])
@torch.no_grad()
def test_what_is_asked_is_the_product_with_the_keys(kind):
    """Also where the queries cannot go through the key projection."""
    decoder = copy.deepcopy(tiny_llava().model.language_model)
    attn: Any = decoder.layers[0].self_attn
    if kind == "with a bias":
        attn.k_proj.bias = torch.nn.Parameter(torch.linspace(-2, 2, 32))
    elif kind == "normalised per head":
        attn.k_norm = torch.nn.RMSNorm(8)
    elif kind == "another module":
        attn.k_proj = Doubled(attn.k_proj)
    elif kind == "half precision":
        decoder.bfloat16()
    layer, generator = FirstLayer(decoder), torch.Generator().manual_seed(0)
    queries, tokens = torch.randn(2, 8, 8, generator=generator), torch.randn(2, 11, 64, generator=generator)
    expected = torch.einsum("bhd,bnhd->bhn", queries, layer.keys(tokens))
    near = {"rtol": 2e-2, "atol": 2e-1} if kind == "half precision" else rounding(1, size=8.0)
    torch.testing.assert_close(layer.asked(queries, tokens).float(), expected, **near)


class Doubled(torch.nn.Linear):
    """A linear layer that does more than its weights say, as a wrapper does."""

    def __init__(self, inside):
        super().__init__(inside.in_features, inside.out_features, bias=False)
        self.weight = inside.weight

    def forward(self, values):
        return 2 * super().forward(values)


def test_the_budget_holds_in_every_layer():
    assert fp.build_pruner("hawk", budget=64).schedule(32, 576) == [64] * 32


def test_one_head_alone_is_that_heads_ranking(tmp_path):
    vision = vision_outputs()
    path = tmp_path / "one.json"
    path.write_text(json.dumps(profile_json(HeadProfile("w", "m", "t", "s", 6, 8, ((0, 5, 0.2),)))))
    kept = fp.build_pruner("hawk", budget=9, weights=str(path)).select_visual(vision)
    layer = vision.first_layer
    for row in range(3):
        query = layer.queries(vision.text_embeds[row])[:, 5].mean(0)
        scores = layer.keys(vision.projected[row])[:, 5] @ query
        assert kept[row].nonzero().squeeze(1).tolist() == best(scores, list(range(64)), 9)


def test_other_weights_and_shuffled_ones_choose_otherwise(weights):
    vision = vision_outputs()
    chosen = [
        fp.build_pruner("hawk", budget=20, **parameters).select_visual(vision)
        for parameters in ({}, {"weights": weights}, {"weights": weights, "shuffle": 1})
    ]
    assert len({keep.numpy().tobytes() for keep in chosen}) == 3


def test_it_can_come_before_a_method_inside():
    pruner = fp.build_pruner("hawk+fastv", budget=6, first=9)
    assert fp.generate(tiny_llava(), pruner, prompts((5, 7)), max_new_tokens=1).trace.tokens_entering[0] == (
        pruner.schedule(6, VISUAL)
    )


def test_weights_of_another_model_are_refused(weights):
    for name, more in (("hawk", {}), ("hawk+fastv", {"first": 100})):
        pruner = fp.build_pruner(name, budget=64, weights=weights, **more)
        pruner.check_heads(8)
        with pytest.raises(ValueError, match=r"weights: .* with 8 query heads; those of this model have 32"):
            pruner.check_heads(32)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"weights": "unifrom"}, "weights: got 'unifrom'.*; expected a .json file"),
        ({"weights": "localisation"}, "weights: 'localisation' names no head of layer 0"),
        ({"shuffle": 1}, "shuffle: got 1; weights='uniform' are the same however they are shuffled"),
        ({"shuffle": 0.5}, "shuffle: got 0.5; expected a whole number"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner("hawk", budget=64, **parameters)


def test_nothing_is_copied_to_the_device(weights):
    choose_without_host_copy(fp.build_pruner("hawk", budget=5, weights=weights, shuffle=2))
