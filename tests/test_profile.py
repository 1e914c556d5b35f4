"""Profiling heads: the criteria in plain Python, what is read of a model, and the command."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import IMAGE, VISUAL, prompts, tiny_llava
from typer.testing import CliRunner

import finepruner_lmms as fp
from finepruner_lmms.bench.head_rows import Looking
from finepruner_lmms.commands.app import app
from finepruner_lmms.heads.criteria import CRITERIA, Profiled, reliability, scores_of, weights_of


def seen(questions: int = 6, layers: int = 3, heads: int = 4, visual: int = 9, seed: int = 0) -> Profiled:
    generator = torch.Generator().manual_seed(seed)
    asked, unasked = (
        torch.randn(questions, layers, heads, visual + 2, generator=generator).softmax(-1)[..., :visual]
        for _ in range(2)
    )
    return Profiled(asked, unasked, torch.rand(questions, visual, generator=generator) > 0.6)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_is_its_formula(criterion):
    given = seen()
    found = scores_of(given, criterion)
    for s in range(6):
        for layer in range(3):
            for head in range(4):
                row, null = given.asked[s, layer, head].tolist(), given.unasked[s, layer, head].tolist()
                there = given.evidence[s].tolist()
                p = [value / sum(row) for value in row]
                expected = {
                    "evidence": sum(a - b for a, b, on in zip(row, null, there, strict=True) if on),
                    "compactness": math.log(9) + sum(value * math.log(value) for value in p),
                    "mass": sum(row),
                }[criterion]
                assert float(found[s, layer, head]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_question_that_changes_nothing_calibrates_every_head_to_zero():
    given = seen()
    assert not scores_of(given._replace(unasked=given.asked), "evidence").any()
    assert weights_of(torch.zeros(2, 3, 4)) == ()


def test_heads_in_another_order_are_profiled_in_that_order():
    given, order = seen(), [2, 0, 3, 1]
    moved = Profiled(given.asked[:, :, order], given.unasked[:, :, order], given.evidence)
    assert torch.equal(scores_of(moved, "evidence"), scores_of(given, "evidence")[:, :, order])


def test_reliability_is_the_rank_correlation_of_two_halves():
    heads = torch.arange(12.0, dtype=torch.float64).view(1, 3, 4).exp()
    assert reliability(heads.expand(4, -1, -1)) == pytest.approx(1)
    assert reliability(torch.cat([heads, -heads])) == pytest.approx(-1)
    assert reliability(torch.ones(4, 3, 4)) == 0
    noise = torch.randn(40, 12, 32, generator=torch.Generator().manual_seed(0))
    assert abs(reliability(noise)) < 0.2


def test_every_head_of_every_layer_is_read_and_nothing_dropped():
    model, inputs = tiny_llava("eager"), prompts((5, 7))
    looking = Looking()
    trace = fp.generate(model, looking, inputs, max_new_tokens=1, execution="eager").trace
    eager = model(**inputs, output_attentions=True).attentions
    assert sorted(looking.rows) == list(range(5)) and trace.tokens_entering == [[VISUAL] * 6]
    shown = inputs["input_ids"][0] == IMAGE
    for layer, rows in looking.rows.items():
        torch.testing.assert_close(rows[0], eager[layer][0, :, -1, shown], rtol=1e-4, atol=1e-6)


def test_the_command_writes_a_profile_that_a_method_takes(tmp_path):
    file = tmp_path / "heads.json"
    done = CliRunner().invoke(app, ["profile", "--out", str(file), "--questions", "2"])
    assert done.exit_code == 0, done.output
    assert "on 2 questions; rank correlation of two halves" in done.output
    written = json.loads(file.read_text())
    assert (written["criterion"], written["questions"], written["layers"]) == ("evidence", 2, 32)
    layer = max(written["weights"], key=lambda one: one[2])[0]
    pruner = fp.build_pruner("finepruner", budget=576, head_strategy="profile", profile=str(file), layer=layer + 1)
    pruner.check_heads(written["heads"])
    assert f"layer={layer + 1} listens to layer {layer}" in done.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "x.txt"], "--out: got 'x.txt'; the name of a profile ends in .json"),
        (["--out", "x.json", "--criterion", "luck"], "--criterion: got 'luck'; known: evidence, compactness, mass"),
        (["--out", "x.json", "--questions", "1"], "--questions: got 1; expected a whole number of at least 2"),
        (["--out", "x.json", "--data", "hub"], "--data: got 'hub'; known: demo"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_anything_is_loaded(arguments, message):
    done = CliRunner().invoke(app, ["profile", *arguments])
    assert done.exit_code == 2 and message in " ".join(done.output.split())
