"""The study's shortcut computes what `generate` computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import finepruner_lmms as fp

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from head_study.compare import Study, clustered_error, over_seeds
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


def test_errors_are_clustered_by_scene(tmp_path):
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(200), 3)
    first = rng.random(600) < 0.8
    second = first & (rng.random(600) < 0.9)
    answers = {"a/kept=64": first, "b/kept=64": second}
    np.savez_compressed(tmp_path / "test-part.npz", scenes=scenes, kinds=scenes, **answers)
    study = Study(tmp_path, "test")
    paired = study.paired("b/kept=64", "a/kept=64")
    assert paired.value == pytest.approx(100 * (second.mean() - first.mean())) and paired.sure
    assert study.names("kept=64") == ["a/kept=64", "b/kept=64"] and study.names("a") == ["a/kept=64"]
    # the same answer to every question of a scene is as many answers as there are scenes
    alike = np.repeat(rng.random(200) < 0.5, 3) * 100.0
    assert clustered_error(alike, scenes) == pytest.approx(alike[::3].std(ddof=1) / 200**0.5)
    independent = clustered_error(alike, np.arange(600))
    assert independent < clustered_error(alike, scenes) / 1.5
    assert over_seeds([paired, paired]).startswith(f"{paired.value:+.1f} ± 0.0")
    with pytest.raises(ValueError, match="holds no results of the deck 'tuning'"):
        Study(tmp_path, "tuning")
