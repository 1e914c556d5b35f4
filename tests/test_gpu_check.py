"""The check for a GPU, tried on a CPU: its sections run, fail alone, and notice what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import finepruner_lmms as fp
from finepruner_lmms.testing import rounding

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import gpu_check
from gpu_checks import right
from gpu_checks.alike import compare_tokens

CPU = torch.device("cpu")
HERE = [name for name in gpu_check.SECTIONS if name not in ("sweep", "waits", "memory", "capture")]


@pytest.fixture
def quick(tmp_path):
    torch.set_num_threads(1)
    return gpu_check.Run(CPU, True, tmp_path / "gpu_check.json")


def test_all_sections_run_on_a_cpu(tmp_path, capsys):
    out = tmp_path / "gpu_check.json"
    status = gpu_check.main(["--quick", "--device", "cpu", "--sections", ",".join(HERE), "--out", str(out)])
    found = json.loads(out.read_text())
    assert {one["section"]: one["state"] for one in found["sections"]} == dict.fromkeys(HERE, "done"), found["sections"]
    assert status == 0
    table = {line["figure"]: line for line in found["table"]}
    assert table["float32: cpu = CPU"]["passed"] and table["float32: graphs = eager"]["passed"]
    # sizes for a trial are measured, and not judged
    ratio = table["prefill, batch 1, FastV 64 / vanilla, both graphs"]
    assert ratio["asked"] == ">= 1.9" and float(ratio["found"]) > 0 and ratio["passed"] is None
    assert "end to end, 3 tokens, batch 2" in capsys.readouterr().out
    assert (tmp_path / "bench.json").is_file()


def test_a_section_without_what_it_needs_is_skipped_and_says_why(quick, capsys):
    assert gpu_check.check(quick, ["waits", "memory"])
    assert [(one["state"], one["reason"]) for one in quick.sections] == [("skipped", "needs a CUDA device")] * 2
    assert "section waits" in capsys.readouterr().out


def test_a_section_fails_alone(quick, monkeypatch, capsys):
    def broken(run):
        raise RuntimeError("CUDA error: an illegal memory access\nmore of it")

    monkeypatch.setitem(gpu_check.SECTIONS, "vision", (broken, 5))
    assert not gpu_check.check(quick, ["vision", "device"])
    assert [one["state"] for one in quick.sections] == ["failed", "done"]
    assert quick.sections[0]["reason"] == "RuntimeError: CUDA error: an illegal memory access"
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("section vision"))
    assert line.endswith("FAIL")
    assert json.loads(quick.out.read_text())["sections"][1]["state"] == "done"


def test_a_device_that_computes_something_else_is_noticed(quick, monkeypatch):
    copied = right.copied

    def off(model, device, dtype=torch.float32):
        model = copied(model, device, dtype)
        model.lm_head.weight.data.mul_(1.001)
        return model

    monkeypatch.setattr(right, "copied", off)
    assert not gpu_check.check(quick, ["cpu_equality"])
    assert quick.lines[0].passed is False and quick.lines[0].found.startswith("0 of ")


def test_tokens_of_recordings_that_differ_are_noticed(quick, monkeypatch):
    generate = fp.generate

    def wrong(model, pruner, inputs, execution="eager", **options):
        result = generate(model, pruner, inputs, execution="eager", **options)
        if execution == "eager":
            return result
        sequences = result.sequences.clone()
        sequences[0, 1] += 1
        return SimpleNamespace(sequences=sequences, execution=execution)

    monkeypatch.setattr(fp, "generate", wrong)
    assert not gpu_check.check(quick, ["graphs_equality"])
    assert quick.lines[0].passed is False


def test_tokens_that_part_at_a_tie_are_told_from_wrong_ones():
    def plain(second_best):
        logits = torch.tensor([[0.0, 1.0, second_best]])
        return SimpleNamespace(sequences=torch.tensor([[1, 1]]), logits=[logits, logits])

    other = torch.tensor([[1, 2]])
    assert compare_tokens(plain(0.0), torch.tensor([[1, 1]])) == (True, False)
    assert compare_tokens(plain(1.0 - rounding()["atol"] / 2), other) == (False, True)
    assert compare_tokens(plain(0.9), other) == (False, False)
    assert compare_tokens(plain(0.0), torch.tensor([[1]])) == (False, False)


def test_time_that_is_used_up_leaves_out_what_is_left(quick):
    quick.begin("prefill", -1.0)
    assert list(quick.within([1, 2])) == []
    assert quick.facts[-1] == {
        "section": "prefill", "left_out": 2, "of": 2, "reason": "the section's time is used up",
    }  # fmt: skip


def test_a_line_about_all_cases_does_not_pass_where_some_were_left_out(quick):
    quick.begin("capture", 5.0)
    quick.ask_all("captured", "all", "2 of 2", True)
    quick.begin("capture", -1.0)
    list(quick.within([1, 2]))
    quick.ask_all("captured", "all", "2 of 2", True)
    quick.ask_all("captured", "all", "1 of 2", False)
    assert [line.passed for line in quick.lines] == [True, None, False]
    assert quick.lines[1].found == "2 of 2; 2 left out"


@pytest.mark.parametrize("found, passed", [(2.0, True), (1.0, False), (None, False)])
def test_a_full_run_judges_what_was_measured_and_what_was_not(tmp_path, found, passed):
    run = gpu_check.Run(CPU, False, None)
    run.ask_ratio("prefill", 1.9, found)
    assert run.lines[0].passed is passed


@pytest.mark.parametrize(
    "arguments, said",
    [(["--sections", "prefil"], "unknown 'prefil'; known: device"), (["--device", "cpu"], "add --quick")],
)
def test_what_cannot_run_is_refused_before_it_starts(arguments, said, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(arguments)
    assert said in capsys.readouterr().err
