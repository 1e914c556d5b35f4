"""The study's shortcut computes what `generate` computes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import finepruner_lmms as fp

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from head_study.deck import Deck
from head_study.first.compare import Models, clustered_error
from head_study.first.run import combined, measure
from head_study.first.write import TABLES
from head_study.pages import fill

from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.demo.scenes import make_scene


@pytest.fixture(scope="module")
def deck() -> Deck:
    return Deck("demo", "tuning", scenes=3, per_scene=2)


def test_a_deck_answers_as_generate_does(deck):
    layer = 9
    pruner = fp.build_pruner("fastv", budget=200, layer=layer, rows="renormalised")
    attention = deck.attention[:, layer - 1]
    attention = attention / attention.sum(-1, keepdim=True)
    retained = pruner.schedule(32, 576)[-1]
    scores = attention.mean(1)
    right = deck.answer(scores, retained, layer)
    for number, asked in enumerate(deck.asked):
        image = make_scene("tuning", asked.scene).image()
        pixels = preprocess(deck.processor.image_processor, image, "pad")[None]
        inputs = {"input_ids": torch.tensor([asked.ids]), "pixel_values": pixels}
        result = fp.generate(deck.model, pruner, inputs, max_new_tokens=len(asked.answer))
        expected = scores[number].argsort(descending=True, stable=True)[:retained].sort().values
        assert result.trace.kept[layer][0].tolist() == expected.tolist()
        assert bool(right[number]) == (result.sequences[0].tolist() == asked.answer)
    vanilla = fp.generate(deck.model, fp.build_pruner("vanilla"), inputs, max_new_tokens=len(asked.answer))
    assert bool(deck.vanilla[-1]) == (vanilla.sequences[0].tolist() == deck.asked[-1].answer)


def test_keeping_everything_is_vanilla(deck):
    assert torch.equal(deck.answer(torch.ones(len(deck.asked), 576), 576, 5), deck.vanilla)
    assert deck.objects.sum(1).tolist() == [4 * round(float(n) / 4) for n in deck.objects.sum(1)]
    assert bool((deck.subject <= deck.objects).all()) and bool(deck.subject.any())


def save(folder: Path, answers: dict[str, np.ndarray], scenes: np.ndarray) -> Path:
    folder.mkdir()
    np.savez_compressed(folder / "test-part.npz", scenes=scenes, kinds=scenes, **answers)
    return folder


def test_errors_are_clustered_by_scene(tmp_path):
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(200), 3)
    first = rng.random(600) < 0.8
    second = first & (rng.random(600) < 0.9)
    folder = save(tmp_path / "one", {"a/kept=64": first, "b/kept=64": second}, scenes)
    models = Models([folder, save(tmp_path / "two", {"a/kept=64": first, "b/kept=64": first}, scenes)], "test")
    worse = 100 * (second.mean() - first.mean())
    paired = models.paired("b/kept=64", "a/kept=64")
    assert paired.models == pytest.approx((worse, 0)) and paired.value == pytest.approx(worse / 2) and paired.sure
    assert paired.spread == pytest.approx(-worse / 2) and paired.full.endswith(f"({worse:+.1f}, +0.0)")
    assert models.paired(["b/kept=64", "a/kept=64"], "a/kept=64").value == pytest.approx(worse / 2)
    assert models.find("kept=64") == ["a/kept=64", "b/kept=64"] and models.find("a") == ["a/kept=64"]
    # the same answer to every question of a scene is as many answers as there are scenes
    alike = np.repeat(rng.random(200) < 0.5, 3) * 100.0
    assert clustered_error(alike, scenes) == pytest.approx(alike[::3].std(ddof=1) / 200**0.5)
    independent = clustered_error(alike, np.arange(600))
    assert independent < clustered_error(alike, scenes) / 1.5
    with pytest.raises(ValueError, match="holds no results of the deck 'tuning'"):
        Models([folder], "tuning")
    with pytest.raises(ValueError, match="not asked about the same scenes"):
        Models([folder, save(tmp_path / "three", {"a/kept=64": first}, scenes + 1)], "test")


def test_one_run_serves_choices_that_keep_the_same(deck, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(len(deck.asked), 576, generator=generator) for _ in range(2)]
    alone = torch.stack([deck.answer(score, 64) for score in scores])
    seen = []
    real = deck.full._answer
    monkeypatch.setattr(
        deck.full, "_answer", lambda group, rows, *rest: (seen.append(len(rows)), real(group, rows, *rest))[1]
    )
    together = deck.answer_all([scores[0], scores[1], 2 * scores[0]], 64)
    assert torch.equal(together, alone[[0, 1, 0]]) and sum(seen) == 2 * len(deck.asked)


def test_what_was_measured_is_not_measured_again(deck, tmp_path, monkeypatch):
    file = tmp_path / "tuning-combined.npz"
    choices = list(combined(deck))[:5]
    measure(deck, choices[:3], file)
    judged = []
    monkeypatch.setattr(deck, "answer_all", lambda scores, *_: (judged.append(len(scores)), alike(deck, scores))[1])
    measure(deck, choices, file)
    assert sum(judged) == 2 and {choice.name for choice in choices} <= set(np.load(file))


def alike(deck: Deck, scores: list) -> torch.Tensor:
    return torch.zeros(len(scores), len(deck.asked), dtype=torch.bool)


def test_tables_go_where_they_are_marked():
    texts = ["a\n<!-- table one -->\nold\n<!-- end -->\nb\n", "<!-- table two -->\n<!-- end -->\n"]
    filled = fill(texts, {"one": ["x", "y"], "two": ["z"]})
    assert filled == [texts[0].replace("old\n", "x\ny\n"), texts[1].replace("two -->\n", "two -->\nz\n")]
    for wrong in ({"one": []}, {"one": [], "two": [], "three": []}):
        with pytest.raises(ValueError, match="each table needs its mark"):
            fill(texts, wrong)
    with pytest.raises(ValueError, match="each table needs its mark, once"):
        fill([texts[0], *texts], {"one": [], "two": []})


def test_every_table_has_its_place_in_the_pages():
    docs = Path(__file__).parents[1] / "docs"
    pages = [(docs / "appendix" / "head_study_tables.md").read_text()]
    names = [*TABLES, "depth", "alone"]
    filled = fill(pages, {name: [f"the table {name}"] for name in names})
    assert all(f"\nthe table {name}\n" in "".join(filled) for name in names)
