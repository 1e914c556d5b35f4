"""The model of time: against what was measured on an H100, and as `plan` uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.cli import app
from finepruner_lmms.engine.roofline import H100
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.cell_time import CELL, Asked, Launched, cell_parts
from finepruner_lmms.matrix.machine import measured_machine
from finepruner_lmms.matrix.pace import Finished, cell_seconds, seconds_of
from finepruner_lmms.matrix.records import Conditions, Result, Speed
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.study import open_study
from finepruner_lmms.matrix.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT / "scripts"))
import time_model  # noqa: E402
from time_model import LLAVA_7B, ROWS, lengths, schedule  # noqa: E402

POINTS = {point.what: point for point in (*time_model.points(), *time_model.fast_points())}


@pytest.mark.parametrize("what", [what for what, point in POINTS.items() if point.within is not None])
def test_the_model_of_time_predicts_what_was_measured(what):
    point = POINTS[what]
    assert point.predicted() == pytest.approx(point.measured, rel=point.within)


@pytest.mark.parametrize("what", [what for what, point in POINTS.items() if point.within is None])
def test_what_the_model_of_time_misses_is_known(what):
    """The host of that machine was noisy. Should the model get one of these right, the page says too little of it."""
    assert POINTS[what].predicted() < 0.8 * POINTS[what].measured


def test_the_page_shows_the_model_as_it_is():
    page = (ROOT / "docs/appendix/time_model.md").read_text()
    for table in (time_model.comparison, time_model.sweep, time_model.workloads, time_model.assumptions):
        assert table() in page, (
            f"docs/appendix/time_model.md: the table of {table.__name__}: python scripts/time_model.py"
        )


def test_weights_are_read_at_least_once_a_step():
    """The limit of decoding at batch 1: 4.5 ms at 2.9 TB/s."""
    assert 1e3 * LLAVA_7B.decoder_bytes / H100.bandwidth.value == pytest.approx(4.5, rel=0.02)


def test_operations_are_those_of_the_published_count():
    assert LLAVA_7B.prefill_flops(lengths("vanilla")) / LLAVA_7B.prefill_flops(lengths("fastv 64")) == pytest.approx(
        5.20, abs=0.005
    )


def test_eight_gpus_share_the_questions_and_pruning_shortens_every_benchmark():
    for task in WORKLOADS:
        times = {row: cell_parts(LLAVA_7B, Asked(task, schedule(row)), Launched(8)) for row in ROWS}
        assert times["vanilla"].total > times["fastv 128"].total > times["fastv 64"].total
        alone = cell_parts(LLAVA_7B, Asked(task, schedule("vanilla")), Launched(1))
        assert 4 < alone.prefill / times["vanilla"].prefill <= 8.001


def result(seconds: float, answered: int, speed: Speed | None = None) -> Result:
    return Result(schema_version=2, id="x", spec={"task": "pope"}, answered=answered, expected=answered,
                  seconds=seconds, speed=speed, samples_bytes=1)  # fmt: skip


def speed(questions: int, rate: float) -> Speed:
    ran = Conditions(device="d", dtype="float16", processes=1, batch_size=16, execution="graphs")
    return Speed(questions=questions, batches=1, seconds=questions / rate, questions_per_second=rate,
                 model_questions_per_second=rate, conditions=ran)  # fmt: skip


def test_finished_cells_correct_the_estimate_by_task_and_a_resumed_one_counts_whole():
    vanilla, fastv = schedule("vanilla"), schedule("fastv 64")
    cells = {"a": Asked("pope", vanilla), "b": Asked("pope", fastv), "c": Asked("gqa", vanilla)}
    plain = cell_seconds(LLAVA_7B, cells, [], Launched())
    twice = Finished(cells["a"], result(2 * plain["a"], 9000))
    corrected = cell_seconds(LLAVA_7B, cells, [twice], Launched())
    assert corrected == pytest.approx({name: 2 * seconds for name, seconds in plain.items()})
    assert seconds_of(result(100.0, 9000, speed(3000, 60.0))) == pytest.approx(100 + 6000 / 60)
    assert seconds_of(result(100.0, 9000, speed(9000, 60.0))) == 100.0


STUDY = """
name: study
model: {{pretrained: {model}}}
data: {data}
tasks: [pope]
methods: [vanilla, {{method: fastv, budget: [128, 64]}}]
launch: {{batch_size: 16}}
"""


def test_plan_says_hours_before_anything_runs(tmp_path):
    """By config.json alone; on what it is based stands beside it."""
    folder = tmp_path / "llava-7b"
    folder.mkdir()
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 32000}
    config |= {"text_config": {"model_type": "llama", "vocab_size": 32064}, "vision_feature_layer": -2}
    (folder / "config.json").write_text(json.dumps(config))
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=folder, data="demo"))
    shown = CliRunner().invoke(app, ["plan", str(file), "--output", str(tmp_path / "run")])
    assert shown.exit_code == 0, shown.output
    last = shown.output.splitlines()[-1]
    assert last.startswith("time for what is left: about ")
    assert "GPU-hours (an estimate for NVIDIA H100, by docs/performance.md; each cell answered alone)" in last
    lines = CliRunner().invoke(app, ["plan", str(file), "--output", str(tmp_path / "run"), "--format", "jsonl"])
    seconds = [json.loads(line)["seconds"] for line in lines.output.splitlines()]
    assert seconds[0] > seconds[1] > seconds[2] > 0


def test_a_bench_of_this_machine_is_what_the_estimate_rests_on(tmp_path):
    """Its limits, and what the unpruned prefill of the largest batch made of them."""
    bench = {"device": {"name": "Some CPU", "kind": "cpu", "flops": 4e11, "bandwidth": 2e10}, "figures": []}
    for batch, seconds in ((1, 1.0), (8, 5.0)):
        figure = {"method": "vanilla", "batch": batch, "prefill": {"median": seconds}}
        bench["figures"].append(figure | {"promise": {"prefill": {"flops": 1e11 * batch}}})
    folder = tmp_path / "bench-demo"
    folder.mkdir()
    (folder / "bench.json").write_text(json.dumps(bench))
    machine = measured_machine(tmp_path, "cpu")
    assert machine is not None and measured_machine(tmp_path, "cuda") is None
    assert machine.compute_share.value == pytest.approx(0.4) and machine.flops_per_second == pytest.approx(1.6e11)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model="demo", data="demo"))
    shown = CliRunner().invoke(app, ["plan", str(file), "--output", str(tmp_path / "run")])
    assert (
        f"(an estimate for Some CPU, by {folder / 'bench.json'}; each cell answered alone)"
        in shown.output.splitlines()[-1]
    )
    (folder / "bench.json").write_text("{}")  # of another version
    assert measured_machine(tmp_path, "cpu") is None


def test_plan_does_not_guess_for_a_small_model(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model="demo", data="demo"))
    shown = CliRunner().invoke(app, ["plan", str(file), "--output", str(tmp_path / "run")])
    assert shown.output.splitlines()[-1] == "time for what is left: unknown until a cell is done"


def test_a_few_questions_tell_how_long_many_take():
    """What each takes is corrected apart from starting and scoring, which a few questions are mostly made of."""
    visual = schedule("vanilla")
    few, many = Asked("pope", visual, limit=40), Asked("pope", visual)
    true = 10 * (cell_parts(LLAVA_7B, few, Launched()).total - CELL.value)  # each question takes ten times as long
    measured = Finished(few, result(CELL.value + true, 40, speed(40, 40 / true)))
    wanted = CELL.value + 10 * (cell_parts(LLAVA_7B, many, Launched()).total - CELL.value)
    assert cell_seconds(LLAVA_7B, {"x": many}, [measured], Launched())["x"] == pytest.approx(wanted)
    assert wanted > 9 * cell_parts(LLAVA_7B, many, Launched()).total


def test_plan_reckons_by_finished_cells_of_another_limit(tmp_path):
    file, output = tmp_path / "study.yaml", tmp_path / "run"
    file.write_text(STUDY.format(model="demo", data="demo"))
    _, store, few = open_study(file, output, limit=24)
    for each in few.cells:
        folder = store.cell_dir(each)
        assert begin_attempt(folder, "1").is_dir()
        about = {"id": each.id, "spec": each.spec(), "seconds": 3.0, "finished": "2026-01-01T00:00:00+00:00"}
        counted = {"answered": 24, "expected": 24, "batch_size": 1, "processes": 1, "device": "cpu"}
        scored = {"metrics": {BENCHMARKS["pope"].metric: 1.0}, "percent": 100.0, "standard_error": None}
        pace = {"speed": speed(24, 24.0).model_dump(mode="json")}  # a second for all, and two for all else
        samples = [{"doc_id": n, "target": "yes", "answer": "yes", "image": "a"} for n in range(24)]
        write_result(folder, about | counted | scored | pace, samples)
    last = CliRunner().invoke(app, ["plan", str(file), "--output", str(output)]).output.splitlines()[-1]
    assert "(by 3 finished cells of other limits or rows)" in last
    lines = CliRunner().invoke(app, ["plan", str(file), "--output", str(output), "--format", "jsonl"]).output
    seconds = [json.loads(line)["seconds"] for line in lines.splitlines()]
    assert sum(seconds) == pytest.approx(3 * (2.0 + 240 / 24), rel=0.05)  # the miniature has 240 questions
