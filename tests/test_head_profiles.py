"""Head profiles: published lists and files, what is wrong with one, and heads weighted by one in a model."""

from __future__ import annotations

import json

import pytest
import torch
from brute_force import answer, best
from conftest import IMAGE, VISUAL, alone, prompts, rounding, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.heads import select_heads
from finepruner_lmms.heads.profile import HeadProfile, profile_json
from finepruner_lmms.heads.profiles import find_profile, written_profile
from finepruner_lmms.heads.published import PUBLISHED
from finepruner_lmms.testing import choose_without_host_copy, decoder_context
from finepruner_lmms.testing.guards import prefill_without_host_copy

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
    with pytest.raises(ValueError, match=r"profile: .*names no head of layer 0, .* heads of layers 1, 2; drop behind"):
        profiled(file, layer=1).schedule(6, VISUAL)
    with pytest.raises(ValueError, match=r"profile: .*names no head of layer 0 or 3, .* heads of layers 1, 2; drop"):
        profiled(file, layer=4, score_layers="3+0", budget="75%").schedule(6, VISUAL)
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
        ({"head_strategy": "profile", "profile": "ocr", "aggregate": "quota"}, "aggregate: got 'quota'; a profile"),
        ({"score_layers": "1+1"}, "score_layers: got '1.1'; expected different layers, counted from 0"),
        ({"score_layers": 0, "guide": "pdrop"}, "score_layers: got 0; guide='pdrop' has depths of its own"),
        ({"score_layers": 0, "query": "text_tokens_only"}, "score_layers: got 0; words other than the last are read"),
        ({"score_layers": "0+1", "head_strategy": "consensus"}, "score_layers: .* is about the heads of one layer"),
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


def seen_by(row: dict, drop: int) -> torch.Tensor:
    """The last token's attention to the image in the layers before `drop`, `[drop, H, N]`, by eager attention."""
    shown = row["input_ids"][0] == IMAGE
    attentions = tiny_llava("eager")(**row, output_attentions=True).attentions[:drop]
    return torch.stack([layer[0, :, -1, shown].detach() for layer in attentions]).double()


@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize("rows", ["raw", "renormalised"])
def test_heads_of_all_layers_before_the_drop_count_by_their_weights(file, rows, aggregate):
    pruner = profiled(file, layer=4, budget="75%", rows=rows, aggregate=aggregate)
    inputs = prompts((5, 7), 11, (2, 4))
    trace = fp.generate(tiny_llava(), pruner, inputs, max_new_tokens=1).trace
    count = pruner.stages(6, VISUAL)[0].retained
    for row in (0, 2):
        seen = seen_by(alone(inputs, row), 4)
        seen = seen / seen.sum(-1, keepdim=True) if rows == "renormalised" else seen
        weighted = torch.stack([2 / 8 * seen[1, 3], 5 / 8 * seen[1, 6], 1 / 8 * seen[2, 0]])
        scores = weighted.sum(0) if aggregate == "mean" else weighted.amax(0)
        assert trace.kept[4][row].tolist() == best(scores, list(range(VISUAL)), count)
    # numbered through: layer 1 of 8 heads begins at 8
    assert trace.heads[0].tolist() == [8 + 6, 8 + 3, 16 + 0]
    assert trace.head_scores[0].nonzero().flatten().tolist() == [8 + 3, 8 + 6, 16] and trace.head_scores.shape[1] == 32
    assert pruner.scored_layers(6, VISUAL) == (1, 2)


@pytest.mark.parametrize("strategy", ["sum", "sparsity", "recommended"])
def test_heads_of_several_layers_are_chosen_as_those_of_one(strategy):
    """`score_layers` apart from the layer of the drop: the heads of layers 0 and 2 guide a drop before layer 4."""
    chosen = {} if strategy == "recommended" else {"heads": 3}
    pruner = fp.build_pruner("finepruner", budget="75%", layer=4, score_layers="2+0", head_strategy=strategy, **chosen)
    inputs = prompts((5, 7), (2, 4))
    trace = fp.generate(tiny_llava(), pruner, inputs, max_new_tokens=1).trace
    count = pruner.stages(6, VISUAL)[0].retained
    for row in range(2):
        heads = seen_by(alone(inputs, row), 4)[[0, 2]].flatten(0, 1).float()[None]
        if strategy == "recommended":
            scores = (heads / heads.sum(-1, keepdim=True)).amax(1)[0]
        else:
            places = select_heads(heads, strategy, 3)[0]
            scores = heads[0, places.sort().values].mean(0)
            assert trace.heads[row].tolist() == [place + 8 * (place >= 8) for place in places.tolist()]
        assert trace.kept[4][row].tolist() == best(scores, list(range(VISUAL)), count)


def test_one_earlier_layer_can_score_a_later_drop():
    early = fp.build_pruner("finepruner", budget="75%", layer=4, heads=3, score_layers=1)
    context = decoder_context(layer=4)
    seen = select_heads(context.attention_in(1), "sum", 3)
    assert early.select(context, 9).heads.tolist() == seen.tolist()
    assert early.scored_layers(6, VISUAL) == (1,)


def test_layers_that_are_not_there_yet_and_too_many_heads_are_refused():
    with pytest.raises(ValueError, match=r"score_layers: got '4'; before a drop at layer 4 there are 0 to 3"):
        fp.build_pruner("finepruner", budget="75%", layer=4, score_layers=4).schedule(6, VISUAL)
    fp.build_pruner("finepruner", budget="75%", layer=4, heads=16, score_layers="0+3").check_heads(8)
    with pytest.raises(ValueError, match="heads: got 17; 2 layers of this model have 16 query heads"):
        fp.build_pruner("finepruner", budget="75%", layer=4, heads=17, score_layers="0+3").check_heads(8)


def test_together_with_others_and_on_fixed_buffers_heads_of_several_layers_choose_the_same(file):
    pruner = profiled(file, layer=4, budget="75%")
    inputs, options = prompts((5, 7), 11, (2, 4)), {"max_new_tokens": 2, "do_sample": False}
    usual = fp.generate(tiny_llava(), pruner, inputs, **options).trace
    fixed = fp.generate(tiny_llava(), pruner, inputs, execution="graphs", **options).trace
    others = [fp.build_pruner("fastv", budget=12), pruner]
    together = answer_together(tiny_llava(), others, inputs, max_new_tokens=2).outcomes[1].trace
    for other in (fixed, together):
        assert all(map(torch.equal, usual.kept[4], other.kept[4])) and torch.equal(usual.heads[::2], other.heads[::2])
    choose_without_host_copy(pruner)
    prefill_without_host_copy(pruner, (5, 7), 11, (2, 0))
