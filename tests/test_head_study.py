"""The study's shortcut computes what `generate` computes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import finepruner_lmms as fp

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from head_study.deck import Deck

from finepruner_lmms.demo.scenes import make_scene
from finepruner_lmms.images import preprocess


@pytest.fixture(scope="module")
def deck() -> Deck:
    return Deck("demo", "tuning", scenes=4, per_scene=2)


@pytest.mark.parametrize("layer", [2, 9])
@pytest.mark.parametrize("rows", ["raw", "renormalised"])
def test_a_deck_answers_as_generate_does(deck, layer, rows):
    budget = 200 if layer == 9 else 64
    pruner = fp.build_pruner("fastv", budget=budget, layer=layer, rows=rows)
    attention = deck.attention[:, layer - 1]
    if rows == "renormalised":
        attention = attention / attention.sum(-1, keepdim=True)
    retained = pruner.schedule(32, 576)[-1]
    scores = attention.mean(1)
    right = deck.answer(scores, retained, layer)
    for number, asked in enumerate(deck.asked):
        image = make_scene("tuning", asked.scene).image()
        pixels = preprocess(deck.processor.image_processor, image, "pad")[None]
        inputs = {"input_ids": torch.tensor([asked.ids]), "pixel_values": pixels}
        result = fp.generate(deck.model, pruner, inputs, max_new_tokens=1)
        expected = scores[number].argsort(descending=True, stable=True)[:retained].sort().values
        assert result.trace.kept[layer][0].tolist() == expected.tolist()
        assert bool(right[number]) == (int(result.sequences[0, 0]) == asked.answer)
    vanilla = [int(fp.generate(deck.model, fp.build_pruner("vanilla"), inputs, max_new_tokens=1).sequences[0, 0])]
    assert bool(deck.vanilla[-1]) == (vanilla[0] == deck.asked[-1].answer)


def test_keeping_everything_is_vanilla(deck):
    assert torch.equal(deck.answer(torch.ones(len(deck.asked), 576), 576, 5), deck.vanilla)
    assert deck.objects.sum(1).tolist() == [4 * round(float(n) / 4) for n in deck.objects.sum(1)]
    assert bool((deck.subject <= deck.objects).all()) and bool(deck.subject.any())
