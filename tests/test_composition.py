"""Methods made of methods, and methods from other packages."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import VISUAL, alone, prompts, rounding, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms import plugins
from finepruner_lmms.pruners import DecoderPruner, VisionPruner, registry
from finepruner_lmms.pruners.vanilla import Vanilla
from finepruner_lmms.testing import prefill_without_host_sync

ROOT = Path(__file__).parents[1]
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}


@pytest.mark.parametrize("inside", ["fastv", "pdrop", "sparsevlm", "finepruner"])
@pytest.mark.parametrize("before", ["divprune", "visionzip", "random"])
def test_a_chain_keeps_its_budget_and_its_batch(before, inside):
    pruner = fp.build_pruner(f"{before}+{inside}", budget=7, first=12)
    assert pruner.name == f"{before}+{inside}"
    model, inputs = tiny_llava(), prompts((5, 7), 11, (2, 4))
    together = fp.generate(model, pruner, inputs, **OPTIONS)
    schedule = pruner.schedule(6, VISUAL)
    assert together.trace.tokens_entering == [schedule, [0] * 6, schedule]
    assert schedule[0] == 12 and abs(sum(schedule) / 6 - 7) <= 1
    first = set(together.trace.kept[0][0].tolist())
    for layer, kept in together.trace.kept.items():
        assert set(kept[0].tolist()) <= first, layer
    for row in range(3):
        single = fp.generate(model, pruner, alone(inputs, row), **OPTIONS)
        for layer, kept in single.trace.kept.items():
            assert torch.equal(kept[0], together.trace.kept[layer][row])
        ours = torch.stack([step[row] for step in together.logits])
        torch.testing.assert_close(ours, torch.stack([s[0] for s in single.logits]), **rounding())


def test_a_chain_that_drops_nothing_first_is_the_second_alone():
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    chain = fp.generate(model, fp.build_pruner("uniform+fastv", budget=8, first=VISUAL), inputs, **OPTIONS)
    plain = fp.generate(model, fp.build_pruner("fastv", budget=8), inputs, **OPTIONS)
    assert torch.equal(torch.stack(chain.logits), torch.stack(plain.logits))
    whole = fp.build_pruner("uniform+fastv")
    assert whole.schedule(6, VISUAL) == [VISUAL] * 6


def test_a_chain_sees_what_the_first_left():
    """The second stage of a chain chooses as it does on a prompt that holds the first stage's tokens only."""
    model, inputs = tiny_llava(), prompts((5, 7))
    pruner = fp.build_pruner("uniform+fastv", budget=6, first=8)
    trace = fp.generate(model, pruner, inputs, max_new_tokens=1).trace
    left = trace.kept[0][0]
    features = model.get_image_features(inputs["pixel_values"]).pooler_output[0][left]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    short = torch.cat([embeds[:, :5], features[None], embeds[:, 5 + VISUAL :]], 1)
    tiny_llava("eager")
    eager = tiny_llava("eager").model.language_model(inputs_embeds=short, output_attentions=True).attentions[1]
    scores = eager[0, :, -1, 5:13].mean(0)
    retained = pruner.schedule(6, VISUAL)[-1]
    expected = left[scores.argsort(descending=True, stable=True)[:retained].sort().values]
    assert trace.kept[2][0].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "name, parameters, message",
    [
        ("fastv+divprune", {"budget": 8, "first": 9}, "one vision-side method, '.', and one decoder-side"),
        ("divprune+uniform", {"budget": 8, "first": 9}, "one vision-side method"),
        ("divprune+fastw", {"budget": 8, "first": 9}, "unknown method 'fastw' .did you mean 'fastv'"),
        ("divprune+fastv", {"budget": 8}, "first: missing; say how many tokens 'divprune' leaves for 'fastv'"),
        ("divprune+fastv", {"budget": 8, "first": 0}, "first: got 0; expected a positive number"),
        ("divprune+fastv", {"budget": 8, "first": 12, "heads": 3}, "heads: method 'divprune.fastv' does not read it"),
        ("fastv", {"first": 12}, "first: method 'fastv' does not read it"),
        ("finepruner", {"guide": "pdropp"}, "guide: got 'pdropp' .did you mean 'pdrop'"),
        ("finepruner", {"guide": "pdrop", "layer": 3}, "layer: got 3; guide='pdrop' has depths of its own"),
        ("finepruner", {"preset": "doc"}, "preset: got 'doc'; only head_strategy='consensus'"),
        ("finepruner", {"head_strategy": "consensus", "preset": "new"}, "preset: got 'new'"),
        ("finepruner", {"head_strategy": "consensus", "aggregate": "max"}, "aggregate: got 'max'"),
        ("finepruner", {"fixed_heads": 3}, "fixed_heads: got 3; only head_strategy='fixed' reads it"),
        ("finepruner", {"head_strategy": "fixed"}, "fixed_heads: got None; expected different heads"),
        ("finepruner", {"head_strategy": "fixed", "fixed_heads": "1+1"}, "fixed_heads: got '1.1'; expected different"),
        ("finepruner", {"head_strategy": "fixed", "fixed_heads": "1,2"}, "fixed_heads: got '1,2'; expected different"),
        ("finepruner", {"head_strategy": "fixed", "fixed_heads": 1, "heads": 4}, "heads: got 4; .* names its heads"),
        ("finepruner", {"head_strategy": "recommended", "heads": 4}, "heads: got 4; .*'recommended' decides it"),
        (
            "finepruner",
            {"head_strategy": "recommended", "rows": "renormalised"},
            "rows: got 'renormalised'; .* decides",
        ),
        ("cdpruner", {"relevance": "none", "clip": "x"}, "clip: got 'x'"),
        ("cdpruner", {"relevance": "words"}, "relevance: got 'words'; known: clip, embedding, none"),
        ("vispruner", {"important_ratio": 1.5}, "important_ratio: got 1.5; expected a number from 0 to 1"),
        ("pdrop", {"variant": "old"}, "variant: got 'old'; known: equal, official"),
        ("sparsevlm", {"positions": "kept"}, "positions: got 'kept'; known: original, renumbered"),
    ],
)
def test_mistakes_are_told_when_the_pruner_is_built(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        fp.build_pruner(name, **parameters)


def test_budgets_of_chains_are_checked():
    with pytest.raises(ValueError, match="first: leaves 9 tokens, fewer than the budget of 10"):
        fp.build_pruner("divprune+fastv", budget=10, first=9).schedule(6, VISUAL)
    with pytest.raises(ValueError, match=r"budget: cannot reach an average of 2 .* reachable: 4 to 12"):
        fp.build_pruner("divprune+fastv", budget=2, first=12).schedule(6, VISUAL)
    schedule = fp.build_pruner("divprune+pdrop", budget="20%", first="50%").schedule(32, 576)
    assert schedule[0] == 288 and abs(Fraction(sum(schedule), 32) - Fraction(576, 5)) < 2


def test_the_budget_of_a_chain_is_rounded_once():
    """20 % of 576 are 115.2; FastV's share of it by hand, of the 288 that enter it: (32·115.2 - 2·288) / 30."""
    schedule = fp.build_pruner("divprune+fastv", budget="20%", first="50%").schedule(32, 576)
    retained = math.floor((32 * Fraction(576, 5) - 2 * 288) / 30 + Fraction(1, 2))
    assert schedule == [288] * 2 + [retained] * 30 and retained == 104  # 103 where 115.2 is 115 first
    with pytest.raises(ValueError, match=r"budget: cannot reach an average of 14.4 .*budget=14.4.* reachable: 18 to"):
        fp.build_pruner("divprune+fastv", budget="2.5%", first="50%").schedule(32, 576)


def test_a_chain_does_not_wait_for_the_device():
    model, inputs = tiny_llava(), prompts((5, 7), (2, 4))
    with prefill_without_host_sync(model):
        fp.generate(model, fp.build_pruner("divprune+sparsevlm", budget=8, first=12), inputs, max_new_tokens=1)


@pytest.fixture(scope="module")
def plugged_in(tmp_path_factory) -> dict[str, str]:
    """The environment in which the example package is installed."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(target), str(ROOT / "examples" / "peak_pruner")], check=True)
    return os.environ | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}


def run(command: list[str], environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_method_from_outside_is_known_and_changes_no_identity_but_its_own(plugged_in, tmp_path):
    code = (
        "import json, finepruner_lmms as fp; from finepruner_lmms.lmms.identity import answer_identity\n"
        "names = [name for name in ('fastv', 'finepruner', 'peak') if name in fp.METHODS]\n"
        "pruners = [fp.build_pruner(name, budget=100) for name in names]\n"
        "print(json.dumps({p.name: answer_identity(p, {}, 'float32', 'c', 576).id for p in pruners}))\n"
        "print(pruners[-1].schedule(32, 576)[-1])"
    )
    ids, retained = run([sys.executable, "-c", code], plugged_in, tmp_path).split("\n")[:2]
    known = json.loads(ids)
    assert known.pop("peak") not in known.values() and retained == "68"
    without = run([sys.executable, "-c", code], os.environ | {"PYTHONPATH": ""}, tmp_path).split("\n")[0]
    assert json.loads(without) == known


@pytest.mark.slow
def test_a_method_from_outside_passes_the_matrix_of_checks(plugged_in, tmp_path):
    tests = str(ROOT / "examples" / "peak_pruner" / "tests")
    said = run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", tests], plugged_in, tmp_path
    )
    assert "11 passed" in said


@pytest.mark.slow
def test_a_method_from_outside_runs_in_lmms_eval_and_in_a_matrix(plugged_in, tmp_path):
    """In a matrix that starts lmms-eval's own command line for each cell."""
    file = tmp_path / "peak.yaml"
    file.write_text(
        "name: peak\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\nlimit: 2\n"
        "methods: [{method: peak, budget: 128}]\nlaunch: {mode: isolated, processes: 1}\n"
    )
    said = run([sys.executable, str(ROOT / "run_matrix.py"), "run", str(file), "--output", "out"], plugged_in, tmp_path)
    assert "peak" in said and "[1/1] done" in said
    (typed,) = tmp_path.glob("out/cells/*/attempt-1/command.txt")
    assert "-m lmms_eval --model llava_finepruner --model_args pretrained=demo,method=peak" in typed.read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["written"] == file.read_text()  # for its report


@pytest.mark.slow
def test_a_broken_plug_in_is_named(tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[finepruner_lmms.methods]\nnothing = broken_pruner\n")
    (tmp_path / "broken_pruner.py").write_text("raise OSError('no such thing')\n")
    done = subprocess.run([sys.executable, "-c", "import finepruner_lmms as fp; fp.METHODS"], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1
    assert "plug-in 'nothing' (broken_pruner) of 'broken' cannot be loaded" in done.stderr


def test_two_methods_cannot_share_a_name():
    class Other(Vanilla):
        """Another one."""

    with pytest.raises(ValueError, match=r"the name 'fastv' belongs to finepruner_lmms.pruners.fastv.FastV already"):
        registry.register("fastv")(Other)
    with pytest.raises(ValueError, match=r"the name 'fastv.finepruner' belongs to"):
        registry.register("other", "fastv+finepruner")(Other)


@dataclass(frozen=True, kw_only=True)
class Blind(VisionPruner):
    """What a method has to be at least."""

    def choose(self, vision):
        return torch.ones_like(vision.features[..., 0], dtype=torch.bool)


class Undecorated(Blind):
    """Not a dataclass itself: what it adds would be no parameter."""

    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Unfinished(DecoderPruner):
    """Does not choose."""

    def stages(self, num_layers, num_visual_tokens):
        return ()


@dataclass(frozen=True)
class Positional(Blind):
    """Its parameter could be given by its place."""

    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Demanding(Blind):
    """Cannot be built by its name alone."""

    share: float


@dataclass(frozen=True, kw_only=True)
class Misplaced(Blind):
    """Says that it works inside the model."""

    side: ClassVar = "decoder"


@dataclass(frozen=True, kw_only=True)
class Ambiguous(Blind):
    """`first` belongs to compositions."""

    first: int = 3


@dataclass(frozen=True, kw_only=True)
class Unchecked(Blind):
    """Leaves out what all methods check."""

    def __post_init__(self):
        pass


@pytest.mark.parametrize(
    "name, cls, message",
    [
        ("sightless", Unchecked, "does not check its budget; call super"),
        ("", Blind, "has no usable name"),
        ("my method", Blind, "has no usable name"),
        ("a+b", Blind, "has no usable name; use letters"),
        ("sightless", dict, "is no Pruner; derive it from VisionPruner or DecoderPruner"),
        ("sightless", Undecorated, "is no frozen dataclass; write @dataclass"),
        ("sightless", Unfinished, "does not define select"),
        ("sightless", Positional, "takes 'share' by its place"),
        ("sightless", Demanding, "has no default for 'share'"),
        ("sightless", Misplaced, "says side = 'decoder', but what it derives from is 'vision'"),
        ("sightless", Ambiguous, "has a parameter 'first', which means something else; rename it"),
    ],
)
def test_what_cannot_work_as_a_method_is_refused_when_it_is_registered(name, cls, message):
    before = fp.METHODS
    with pytest.raises(ValueError, match=f"method: {name!r} .*{message}".replace("+", "[+]")):
        registry.register(name)(cls)
    assert before == fp.METHODS


def test_a_registered_method_is_listed_at_once(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registry.register("sightless")(Blind)
    assert "sightless" in fp.METHODS and sorted(fp.METHODS) == fp.METHODS
    assert fp.build_pruner("sightless", budget=3).name == "sightless"


def test_a_broken_plug_in_stops_only_who_needs_it(monkeypatch):
    def broken():
        raise RuntimeError("plug-in 'nothing' cannot be loaded")

    monkeypatch.setattr(plugins, "load_plugins", broken)
    monkeypatch.setattr(plugins, "_asked", False)
    assert fp.build_pruner("fastv", budget=100).name == "fastv"
    for _ in range(2):  # and it is told again
        with pytest.raises(RuntimeError, match="plug-in 'nothing'"):
            fp.METHODS  # noqa: B018
        with pytest.raises(RuntimeError, match="plug-in 'nothing'"):
            fp.build_pruner("nothing")
