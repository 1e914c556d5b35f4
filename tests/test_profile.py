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
from finepruner_lmms.bench.profiling_questions import WORLDS, evidence_of, tuning_questions
from finepruner_lmms.commands.app import app
from finepruner_lmms.engine.token_gradient import log_probability, token_weights
from finepruner_lmms.heads.controls import CONTROLS, control, found_share, held_out
from finepruner_lmms.heads.criteria import CRITERIA, Profiled, mean_weights, named_weights, reliability, scores_of


def correlation(one: list[float], other: list[float]) -> float:
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (one, other))
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def seen(questions: int = 6, layers: int = 3, heads: int = 4, visual: int = 9, seed: int = 0) -> Profiled:
    generator = torch.Generator().manual_seed(seed)
    asked, unasked = (
        torch.randn(questions, layers, heads, visual + 2, generator=generator).softmax(-1)[..., :visual]
        for _ in range(2)
    )
    evidence = torch.rand(questions, visual, generator=generator) > 0.6
    return Profiled(asked, unasked, evidence, torch.rand(questions, visual, generator=generator))


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
                    "hits": there[row.index(max(row))] / sum(there),
                    "gradient": correlation(row, given.gradient[s].tolist()),
                }[criterion]
                assert float(found[s, layer, head]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_question_that_changes_nothing_calibrates_every_head_to_zero():
    given = seen()
    assert not scores_of(given._replace(unasked=given.asked), "evidence").any()
    assert named_weights(mean_weights(torch.zeros(2, 3, 4))) == ()


def test_heads_in_another_order_are_profiled_in_that_order():
    given, order = seen(), [2, 0, 3, 1]
    moved = given._replace(asked=given.asked[:, :, order], unasked=given.unasked[:, :, order])
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
    done = CliRunner().invoke(
        app, ["profile", "--out", str(file), "--questions", "2", "--control", "heads", "--seed", "3"]
    )
    assert done.exit_code == 0, done.output
    assert "on 2 questions; rank correlation of two halves" in done.output
    assert "evidence among the best tokens, in percent, of questions not profiled" in done.output
    assert "The file is a control, drawn by seed 3: its weights on other heads of the layers." in done.output
    written = json.loads(file.read_text())
    assert (written["criterion"], written["questions"], written["layers"]) == ("evidence", 2, 32)
    assert (written["control"], written["seed"]) == ("heads", 3) and written["task"].startswith("a control (")
    assert set(written["held_out"]) == {"profile", "alike", "chance", *CONTROLS}
    layer = max(written["weights"], key=lambda one: one[2])[0]
    pruner = fp.build_pruner("finepruner", budget=576, head_strategy="profile", profile=str(file), layer=layer + 1)
    pruner.check_heads(written["heads"])
    assert f"layer={layer + 1} listens to the heads of layers 0 to {layer}" in done.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "x.txt"], "--out: got 'x.txt'; the name of a profile ends in .json"),
        (["--out", "x.json", "--criterion", "luck"], "--criterion: got 'luck'; known: evidence, hits, compactness"),
        (["--out", "x.json", "--questions", "1"], "--questions: got 1; expected a whole number of at least 2"),
        (["--out", "x.json", "--data", "hub"], "--data: got 'hub'; known: demo, demo-tuning, demo-hard"),
        (["--out", "x.json", "--control", "luck"], "--control: got 'luck'; known: heads, weights, noise"),
        (["--out", "x.json", "--seed", "-1"], "--seed: got -1; expected a whole number"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_anything_is_loaded(arguments, message):
    done = CliRunner().invoke(app, ["profile", *arguments])
    assert done.exit_code == 2 and message in " ".join(done.output.split())


def test_controls_are_of_the_same_layers_of_the_same_heads_or_of_nothing():
    weights = torch.tensor([[0.0, 3.0, 0.0, 1.0], [0.0, 0.0, 2.0, 0.0]], dtype=torch.float64)
    moved = control(weights, "heads", 1)
    assert torch.equal(moved.sort(dim=1).values, weights.sort(dim=1).values)
    assert any(not torch.equal(control(weights, "heads", seed), weights) for seed in range(3))
    drawn = control(weights, "weights", 1)
    assert torch.equal(drawn > 0, weights > 0) and drawn.max() <= 1 and not torch.equal(drawn, weights)
    every = control(torch.zeros(30, 40), "noise", 1)
    assert every.min() == 0 and 0.45 < float((every > 0).double().mean()) < 0.55
    for kind in CONTROLS:
        assert torch.equal(control(weights, kind, 7), control(weights, kind, 7))
        assert not torch.equal(control(weights.repeat(9, 9), kind, 7), control(weights.repeat(9, 9), kind, 8))


def test_what_heads_find_is_the_share_of_evidence_among_the_best_tokens():
    asked = torch.zeros(2, 1, 2, 4)
    asked[:, 0, 0] = torch.tensor([0.1, 0.2, 0.0, 0.1])  # normalised: 1/4, 1/2, 0, 1/4
    asked[:, 0, 1] = torch.tensor([0.0, 0.0, 0.01, 0.03])  # 0, 0, 1/4, 3/4
    evidence = torch.tensor([[True, True, False, False], [False, False, False, True]])
    given = Profiled(asked, asked, evidence)
    first, both = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    assert found_share(given, first) == 0.5  # tokens 1 and 0, the lower of two alike; then token 1
    assert found_share(given, both) == 0.75  # tokens 3 and 1; then 3


def test_heads_that_find_evidence_find_it_in_questions_that_they_were_not_chosen_by():
    """Two of sixteen heads look at what is asked about, the others anywhere."""
    draw = torch.Generator().manual_seed(0)
    evidence = torch.zeros(20, 50, dtype=torch.bool)
    for row in evidence:
        row[torch.randperm(50, generator=draw)[:4]] = True
    asked = torch.rand(20, 2, 8, 50, generator=draw)
    asked[:, 1, 2:4] += 0.6 * evidence[:, None]
    found = held_out(Profiled(asked, torch.rand(20, 2, 8, 50, generator=draw), evidence), "evidence")
    shares = {kind: (mean, low, high) for kind, mean, low, high in found.controls}
    assert found.chance == pytest.approx(0.08)
    assert found.profile > max(found.alike, shares["heads"][2], shares["noise"][2]) > found.chance
    for mean, low, high in shares.values():
        assert low <= mean <= high


def test_the_gradient_is_what_scaling_a_token_does_to_the_answer():
    """By central differences in float64, on the random model; and the log-probability is the model's own."""
    model = tiny_llava(dtype=torch.float64)
    inputs = prompts((5, 7))
    tokens = torch.randn(1, VISUAL, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = inputs["input_ids"]
    found = token_weights(model, ids, tokens, 2)
    with torch.no_grad():
        for token in (0, 3, VISUAL - 1):
            near = []
            for scale in (1.01, 0.99):  # normalisations round to float32, so not nearer
                moved = tokens.clone()
                moved[0, token] *= scale
                near.append(float(log_probability(model, ids, moved, 2)))
            assert float(found[token]) == pytest.approx(abs(near[0] - near[1]) / 0.02, rel=1e-2, abs=1e-4)
        own = model.get_image_features(inputs["pixel_values"].double()).pooler_output[0][None]
        logits = model(**inputs | {"pixel_values": inputs["pixel_values"].double()}).logits[0].log_softmax(-1)
        expected = sum(float(logits[place - 1, ids[0, place]]) for place in (-2, -1))
        assert float(log_probability(model, ids, own, 2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("data", WORLDS)
def test_profiled_questions_are_about_things_of_the_tuning_split(data):
    for image, question in tuning_questions(data, 2):
        evidence = evidence_of(question, 576)
        assert image.size == (336, 336) and question.subject and 0 < int(evidence.sum()) < 576
