"""The bench: what it is asked, what it counts, and that its files say what was measured."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from conftest import prompts, tiny_llava
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import finepruner_lmms as fp
from finepruner_lmms.bench import record
from finepruner_lmms.bench.asking import Asking, counted_waits, without_end
from finepruner_lmms.bench.clock import Spread
from finepruner_lmms.bench.gains import prefill_gain, total_gain
from finepruner_lmms.bench.measure import NATURAL_MEAN, NATURAL_MOST, Bench, natural_lengths
from finepruner_lmms.bench.promise import Work, promise
from finepruner_lmms.bench.prompts import random_prompts, scene_prompts
from finepruner_lmms.bench.report import markdown
from finepruner_lmms.bench.request import check_request
from finepruner_lmms.bench.roofline import measure_device
from finepruner_lmms.bench.selection import selection_seconds
from finepruner_lmms.bench.shapes import SHAPES, random_llava
from finepruner_lmms.cli import app
from finepruner_lmms.engine.parts import Parts
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.fastv import FastV

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    return random_llava("tiny", CPU, torch.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of one small run from the command line, and what it printed."""
    torch.set_num_threads(1)  # a module's fixture comes before the one that does so for every test
    out = tmp_path_factory.mktemp("bench")
    asked = "bench --like tiny --methods fastv:50%,vispruner:16 --batch 2 --tokens 3 --rounds 1 --device cpu --out"
    done = CliRunner().invoke(app, [*asked.split(), str(out)])
    assert done.exit_code == 0, done.output
    return out, done.stdout


def test_the_command_writes_json_table_and_picture(written):
    out, printed = written
    found = record.load(out / "bench.json")
    assert [one.method for one in found.figures] == ["vanilla", "fastv 50%", "vispruner 16"]
    assert {one.batch for one in found.figures} == {2} and {one.execution for one in found.figures} == {"eager"}
    assert (out / "bench.md").read_text() == markdown(found) and markdown(found) in printed
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    for one in found.figures:
        assert one.prefill.median > 0 and 0 < one.first.median < one.total.median
        assert one.first.p5 <= one.first.median <= one.first.p95 and one.first.samples == 1
        assert one.per_second.median == pytest.approx(2 / one.total.median, rel=1e-6)
        assert one.peak is None and one.waits is None  # a GPU's


def test_only_methods_that_choose_have_a_selection_time(written):
    chosen = {one.method: one.selection for one in record.load(written[0] / "bench.json").figures}
    assert chosen["vanilla"] is None
    assert chosen["fastv 50%"].median > 0 and chosen["vispruner 16"].median > 0


def test_a_table_can_be_written_again_without_measuring(written, tmp_path):
    done = CliRunner().invoke(app, ["bench", "--redraw", str(written[0] / "bench.json"), "--out", str(tmp_path)])
    assert done.exit_code == 0 and (tmp_path / "bench.md").read_text() == (written[0] / "bench.md").read_text()
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"model": "x"}))
    done = CliRunner().invoke(app, ["bench", "--redraw", str(wrong)])
    assert done.exit_code == 2 and "wrong.json' is no result of `bench`" in done.stderr
    done = CliRunner().invoke(app, ["bench", "--redraw", str(wrong), "--like", "tiny"])
    assert done.exit_code == 2 and "--redraw: measures nothing; leave --pretrained" in done.stderr


@pytest.mark.parametrize(
    "asked, field, said",
    [
        ({}, "--pretrained", "give a checkpoint, or --like with a shape of: llava-1.5-7b"),
        ({"like": "tiny", "pretrained": "demo"}, "--pretrained", "both"),
        ({"like": "tinny"}, "--like", "did you mean 'tiny'?"),
        ({"like": "tiny", "methods": "fastv"}, "--methods", "'fastv' has no budget; write fastv:64"),
        ({"like": "tiny", "methods": "fastw:8"}, "--methods", "did you mean 'fastv'?"),
        ({"like": "tiny", "methods": "fastv:50%:heads=4"}, "--methods", "does not read it"),
        ({"like": "tiny", "methods": "fastv:2"}, "--methods", "'fastv:2': cannot reach an average of 2"),
        ({"like": "tiny", "methods": "fastv:8:layer"}, "--methods", "cannot read 'layer'"),
        ({"like": "tiny", "methods": "cdpruner:16"}, "--methods", "write it with relevance=embedding"),
        ({"like": "tiny", "batch": "1,x"}, "--batch", "got '1,x'; expected batch sizes"),
        ({"like": "tiny", "batch": "0"}, "--batch", "got '0'"),
        ({"like": "tiny", "tokens": 1}, "--tokens", "at least 2"),
        ({"like": "tiny", "execution": "graph"}, "--execution", "did you mean 'graphs'?"),
        ({"like": "tiny", "execution": "both", "device": "cpu"}, "--execution", "CUDA graphs need a GPU"),
        ({"like": "tiny", "device": "gpu"}, "--device", "expected auto, cpu, cuda"),
        ({"like": "tiny", "dtype": "int8"}, "--dtype", "known: auto, float32"),
    ],
)
def test_a_wrong_option_is_named_with_its_fix(asked, field, said):
    with pytest.raises(FieldError) as caught:
        check_request(**asked)
    assert caught.value.field == field and said in str(caught.value)


def test_methods_come_with_their_parameters_and_vanilla_first():
    asked = check_request(
        like="tiny", methods="finepruner:50%:heads=2:head_strategy=entropy,divprune+fastv:24:first=32"
    )
    labels = [method.label for method in asked.methods]
    assert labels == ["vanilla", "finepruner 50% heads=2 head_strategy=entropy", "divprune+fastv 24 first=32"]
    assert asked.methods[1].pruner == fp.build_pruner("finepruner", budget="50%", heads=2, head_strategy="entropy")


@pytest.mark.parametrize("shape", SHAPES)
def test_methods_by_default_are_ones_that_the_shape_can_run(shape):
    assert len(check_request(like=shape).methods) == 5


def test_a_random_model_answers_with_different_tokens(tiny):
    asking, asked = Asking(tiny), random_prompts(tiny, 4, 20)
    with without_end(tiny):
        sequences = asking(fp.build_pruner("vanilla"), asked.from_pixels, 8, "auto").sequences
    assert sequences.shape == (4, 8) and len(set(sequences.flatten().tolist())) > 8


def test_shapes_of_the_published_models_have_their_parameters():
    with torch.device("meta"):
        counts = {
            name: sum(weight.numel() for weight in type(random_llava("tiny", CPU, torch.float32))(
                SHAPES[name].config()).parameters())
            for name in ("llava-1.5-7b", "llava-1.5-13b")
        }  # fmt: skip
    assert counts["llava-1.5-7b"] == pytest.approx(7.06e9, rel=0.01)
    assert counts["llava-1.5-13b"] == pytest.approx(13.35e9, rel=0.01)


def test_promised_operations_are_those_that_torch_counts():
    """Of tower, projector, decoder and head in a prefill, with eager attention, whose products torch counts."""
    model, inputs = tiny_llava("eager"), prompts((4, 9), (4, 9))
    pruner = fp.build_pruner("fastv", budget=8)
    counter = FlopCounterMode(display=False)
    with counter:
        fp.generate(model, pruner, inputs, max_new_tokens=1, do_sample=False)
    work = promise(model, pruner, 2, 13, 4)
    counted = counter.get_total_flops()
    # torch counts the tower's last layer too, of which LLaVA reads nothing
    layer = 2 * 2 * (17 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 17 * 17 * 32)
    assert work.vision.flops + work.prefill.flops + layer == pytest.approx(counted, rel=5e-3)


def test_a_step_reads_all_weights_of_the_decoder_and_the_cache(tiny):
    parts = Parts.of(tiny)
    weights = sum(weight.nbytes for weight in (*parts.decoder.parameters(), *parts.head.parameters()))
    weights -= tiny.get_input_embeddings().weight.nbytes
    work = promise(tiny, fp.build_pruner("vanilla"), 3, 20, 2)
    assert work.step.bytes == weights + 3 * 8 * 2 * (64 + 20 + 1) * 64 * 4
    assert work.prefill.bytes == weights + 3 * 8 * 2 * (64 + 20) * 64 * 4


def test_the_roofline_is_the_longer_of_products_and_copies():
    device = measure_device(CPU, torch.float32, rounds=1)
    assert device.flops > 1e9 and device.bandwidth > 1e8
    assert Work(device.flops, 0.0).seconds(device) == 1.0
    assert Work(device.flops, 2 * device.bandwidth).seconds(device) == 2.0


def test_natural_lengths_are_the_same_for_all_methods_and_have_the_stated_mean():
    assert natural_lengths(8, 3) == natural_lengths(8, 3) != natural_lengths(8, 4)
    many = natural_lengths(20000, 0)
    assert max(many) == NATURAL_MOST and min(many) == 1
    # a geometric length that is cut off at m has the mean (1 - (1 - p)^m) / p
    assert sum(many) / len(many) == pytest.approx(NATURAL_MEAN * (1 - 0.75**NATURAL_MOST), rel=0.05)


def test_answers_of_a_checkpoint_end_by_themselves():
    model, processor = fp.load_model("demo", device="cpu")
    asked = scene_prompts(model, processor, 2)
    methods = check_request(pretrained="demo", methods="fastv:64").methods[1:]
    (found,) = Bench(Asking(model, asked.questions), 6, 1, random_weights=False).measure(methods, ("auto",), asked)
    assert found.method == "fastv 64" and 1 <= found.natural_tokens < 6


def test_timing_a_choice_leaves_the_method_as_it_was(tiny):
    asked = random_prompts(tiny, 2, 20)
    vision = fp.encode_images(tiny, asked.pixels)
    before = FastV.select, "select" in vars(FastV)
    with without_end(tiny):
        assert selection_seconds(Asking(tiny), fp.build_pruner("fastv", budget="50%"), asked, vision) > 0
        chain = fp.build_pruner("divprune+fastv", budget=24, first=32)
        assert selection_seconds(Asking(tiny), chain, asked, vision) > 0
    assert before == (FastV.select, "select" in vars(FastV))


def test_waits_are_counted_and_other_warnings_pass(monkeypatch):
    """As torch words them on a GPU: once that the mode is a prototype, then each wait."""
    modes = []

    def set_mode(mode):
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.warns(UserWarning) as others:
        with counted_waits() as places:
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert len(places) == 2 and places[0].startswith("test_bench.py:")
    assert modes == ["warn", 0]
    assert "something else" in [str(one.message) for one in others]


def test_an_end_token_is_given_back_after_answers_of_fixed_length():
    model = tiny_llava()
    model.generation_config.eos_token_id = [3, 4]
    try:
        with pytest.raises(ZeroDivisionError), without_end(model):
            assert model.generation_config.eos_token_id is None
            1 / 0  # noqa: B018
        assert model.generation_config.eos_token_id == [3, 4]
    finally:
        model.generation_config.eos_token_id = None


def test_gains_compare_with_vanilla_of_the_same_batch_and_execution(written):
    found = record.load(written[0] / "bench.json")
    whole, fastv, _ = found.figures
    assert prefill_gain(found, whole).share == total_gain(found, whole).share == 1.0
    gain = prefill_gain(found, fastv)
    assert gain.realised == whole.prefill.median / fastv.prefill.median
    assert gain.promised == whole.promise.prefill.flops / fastv.promise.prefill.flops > 1.2


def test_a_spread_is_median_and_outer_percentiles():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.1, 2.9, 3)
