"""Head profiles: published lists and files, what is wrong with one, and heads weighted by one in a model."""

from __future__ import annotations

import json

import pytest
import torch
from brute_force import answer, best
from conftest import VISUAL, alone, prompts, rounding, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.heads.profile import HeadProfile, profile_json
from finepruner_lmms.heads.profiles import find_profile, written_profile
from finepruner_lmms.heads.published import PUBLISHED
from finepruner_lmms.testing import choose_without_host_copy, decoder_context

TINY = HeadProfile("tiny", "a random LLaVA", "nothing", "made up", 6, 8, ((1, 3, 2.0), (1, 6, 5.0), (2, 0, 1.0)))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(profile_json(TINY)))
    return path


def profiled(file, **parameters):
    given = {"budget": "50%", "head_strategy": "profile", "profile": str(file)} | parameters
    return fp.build_pruner("finepruner", **given)


def test_published_lists_are_of_llava_with_their_source():
    assert set(PUBLISHED) == {"localisation", "localisation-ocr", "ocr"}
    for name, profile in PUBLISHED.items():
        assert (profile.name, profile.layers, profile.heads) == (name, 32, 32)
        assert profile.source.startswith("https://arxiv.org/abs/") and profile.task
    assert PUBLISHED["localisation"].of_layer(14) == [(24, 571), (26, 406), (29, 246), (18, 106), (3, 102)]
    assert PUBLISHED["localisation"].named_layers == (10, 11, 14, 15)
    assert PUBLISHED["ocr"].of_layer(14, most=2) == [(7, 1), (18, 1)]


def test_a_file_is_the_profile_that_was_written(file):
    assert find_profile("profile", str(file)).weights == TINY.weights
    assert find_profile("profile", str(file)).name == "tiny.json"


def test_a_result_never_outlives_the_content_of_the_file(file):
    """The parameter holds a part of the content's hash, and a file that changed since is refused."""
    pruner = profiled(file)
    again = fp.build_pruner("finepruner", budget=pruner.budget, **pruner.parameters())
    assert pruner.profile == written_profile("profile", str(file)) and again == pruner
    file.write_text(file.read_text().replace("5.0", "4.0"))
    assert profiled(file) != pruner
    with pytest.raises(ValueError, match=r"profile: .*tiny.json.* is not what it was"):
        fp.build_pruner("finepruner", budget=pruner.budget, **pruner.parameters())


@pytest.mark.parametrize("rows", ["raw", "renormalised"])
def test_in_a_model_heads_count_by_their_weights(file, rows):
    """Head 6 counts 5, head 3 counts 2, of the layer before the drop; the others are not listened to."""
    model, inputs, pruner = tiny_llava(), prompts((5, 7), 11, (2, 4)), profiled(file, rows=rows)
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    result = fp.generate(model, pruner, inputs, **options)

    def choose(_layer, attention, alive, count):
        heads = attention[:, alive].double()
        heads = heads / heads.sum(1, keepdim=True) if rows == "renormalised" else heads
        scores = torch.zeros(VISUAL, dtype=torch.float64)
        scores[alive] = (2 * heads[3] + 5 * heads[6]) / 7
        return best(scores, alive, count)

    stages = {stage.layer: stage.retained for stage in pruner.stages(6, VISUAL)}
    for row in (0, 2):
        expected, kept = answer(model, alone(inputs, row), stages, choose, 3)
        assert result.trace.kept[2][row].tolist() == kept[2]
        torch.testing.assert_close(torch.stack([step[row] for step in result.logits]), expected, **rounding())
    assert result.trace.heads[0].tolist() == [6, 3]


def test_the_heaviest_heads_alone_can_guide(file):
    context = decoder_context()
    chosen = profiled(file, heads=1).select(context, 9)
    fixed = fp.build_pruner("finepruner", head_strategy="fixed", fixed_heads=6).select(context, 9)
    assert chosen.heads.tolist() == [[6]] * 3 and torch.equal(chosen.keep, fixed.keep)


def test_equal_weights_of_all_heads_are_fastv(tmp_path):
    path = tmp_path / "all.json"
    every = HeadProfile("all", "m", "t", "s", 6, 8, tuple((1, head, 0.5) for head in range(8)))
    path.write_text(json.dumps(profile_json(every)))
    context = decoder_context()
    assert torch.equal(
        profiled(path).select(context, 9).keep, fp.build_pruner("fastv", budget="50%").select(context, 9).keep
    )


def test_shuffled_weights_are_a_control_of_the_same_layers(file):
    moved = TINY.shuffled(1)
    assert sorted((layer, weight) for layer, _, weight in moved.weights) == [(1, 2.0), (1, 5.0), (2, 1.0)]
    assert moved == TINY.shuffled(1) and moved.weights != TINY.weights and moved.weights != TINY.shuffled(2).weights
    assert profiled(file, shuffle=1).select(decoder_context(), 9).heads.tolist()[0] == [
        head for head, _ in moved.of_layer(1)
    ]


def test_a_profile_of_another_model_or_layer_is_refused(file):
    with pytest.raises(ValueError, match=r"profile: .*names no head of layer 3, .* heads of layers 1, 2; drop before"):
        profiled(file, layer=4, budget="75%").schedule(6, VISUAL)
    with pytest.raises(ValueError, match=r"profile: .* a model with 6 layers; this one has 32"):
        profiled(file).schedule(32, 576)
    with pytest.raises(ValueError, match=r"profile: .* with 8 query heads; those of this model have 32"):
        profiled(file).check_heads(32)
    published = fp.build_pruner("finepruner", budget=128, head_strategy="profile", profile="localisation")
    with pytest.raises(ValueError, match=r"layers 10, 11, 14, 15; .*layer=16"):
        published.schedule(32, 576)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"head_strategy": "profile"}, "profile: got None; expected a .json file, or one of localisation"),
        ({"head_strategy": "profile", "profile": "localization"}, r"did you mean 'localisation'\?"),
        ({"head_strategy": "profile", "profile": "missing.json"}, "profile: cannot read 'missing.json': No such file"),
        ({"profile": "ocr"}, "profile: got 'ocr'; only head_strategy='profile' reads it"),
        ({"shuffle": 1}, "shuffle: got 1; only head_strategy='profile' reads it"),
        ({"head_strategy": "profile", "profile": "ocr", "aggregate": "max"}, "aggregate: got 'max'; a profile adds"),
        ({"head_strategy": "profile", "profile": "ocr", "normalise": "renormalise"}, "normalise: .* ranks nothing"),
        ({"head_strategy": "profile", "profile": "ocr", "shuffle": -1}, "shuffle: got -1; expected a whole number"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner("finepruner", budget=64, **parameters)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda one: [one], "is no head profile"),
        (lambda one: one | {"weights": {}}, r"weights are lists of \[layer, head, weight\]"),
        (lambda one: one | {"weights": []}, "weights: names no head"),
        (lambda one: one | {"weights": [[1, 2]]}, r"weights are lists of \[layer, head, weight\]"),
        (lambda one: one | {"weights": [[6, 0, 1.0]]}, "weights: got 6; .* at most 5"),
        (lambda one: one | {"weights": [[0, 8, 1.0]]}, "weights: got 8; .* at most 7"),
        (lambda one: one | {"weights": [[0, 0, 0.0]]}, "weights: head 0-0 has 0.0; expected a number above 0"),
        (lambda one: one | {"weights": [[0, 0, float("nan")]]}, "weights: head 0-0 has nan"),
        (lambda one: one | {"weights": [[0, 0, "1"]]}, "weights: head 0-0 has '1'"),
        (lambda one: one | {"weights": [[0, 0, 1.0], [0, 0, 2.0]]}, "weights: names head 0-0 twice"),
        (lambda one: one | {"layers": 0}, "layers: got 0"),
        (lambda one: one | {"task": 3}, "model, task and source are texts"),
        (lambda one: {key: value for key, value in one.items() if key != "heads"}, "is no head profile; it has model"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(change(profile_json(TINY))))
    with pytest.raises(ValueError, match=f"profile: .*bad.json.*{message}"):
        find_profile("profile", str(path))


def test_what_is_no_json_is_said(tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"profile: .*bad.json.* is not valid JSON"):
        find_profile("profile", str(path))


def test_nothing_is_copied_to_the_device(file):
    choose_without_host_copy(profiled(file))
    choose_without_host_copy(profiled(file, heads=1, shuffle=0))
