"""The sweep as a user runs it: real commands, a real `accelerate launch`, real kills."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finepruner_lmms.data.task_folders import data_root
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.traces import read_traces

pytestmark = pytest.mark.slow

MATRIX = """\
name: sweep
model: {{pretrained: demo}}
data: {data}
tasks: [{tasks}]
limit: {limit}
methods:
  - vanilla
  - {{method: uniform, budget: [{budgets}]}}
launch: {{batch_size: 8, processes: {processes}, timeout_minutes: {timeout}, mode: {mode}}}
"""
COMMAND = [sys.executable, "-m", "finepruner_lmms.cli"]


def matrix(folder: Path, **changes) -> Path:
    settings = {"data": "demo", "tasks": "gqa, mme", "limit": 8, "budgets": 64, "processes": 1, "timeout": 5}
    settings["mode"] = "auto"
    file = folder / "matrix.yaml"
    file.write_text(MATRIX.format(**settings | changes), encoding="utf-8")
    return file


def finepruner(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment())
    assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def environment() -> dict[str, str]:
    # as a scheduler or an outer launcher would leave them: the worker must not look for these peers
    foreign = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "SLURM_PROCID": "3"}
    return os.environ | foreign | {"HF_HUB_OFFLINE": "1"}


def results(output: Path) -> dict[str, dict]:
    """Results by the cell's directory."""
    return {file.parent.name: json.loads(file.read_text()) for file in output.glob("cells/*/result.json")}


def answers(output: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in output.glob("cells/*/samples.jsonl")}


def wait_for(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def running(output: Path) -> dict | None:
    """The status of a cell whose worker has answered some questions, so that a kill hits it in the middle."""
    for events in output.glob("launches/*/events.jsonl"):
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        if lines and lines[-1]["event"] == "progress" and lines[-1]["done"] < lines[-1]["total"]:
            started = [line["cell"] for line in lines if line["event"] == "start"][-1]
            (file,) = output.glob(f"cells/*-{started}/status.json")
            return json.loads(file.read_text()) | {"folder": file.parent}
    return None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    """A small matrix, planned and run."""
    folder = tmp_path_factory.mktemp("finished")
    config, output = matrix(folder), folder / "out"
    plan = finepruner("plan", config, "--output", output)
    assert "2 rows x 2 tasks = 4 cells, 0 done, 4 to do" in plan.stdout and "unknown until" in plan.stdout
    assert not output.exists()  # a plan runs nothing and writes nothing
    return config, output, finepruner("run", config, "--output", output)


def test_one_launch_does_all_cells_and_prints_the_leaderboard(finished):
    _, output, run = finished
    assert len(results(output)) == 4 and len(list(output.glob("launches/*"))) == 1
    assert "[4/4] done" in run.stdout and "100.0 %" in run.stdout and "\x1b" not in run.stdout
    for result in results(output).values():
        assert result["answered"] == result["expected"] == 8
    lines = (output / "launches" / "1" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("ready") == 1


def test_a_second_run_does_nothing_in_seconds(finished):
    config, output, first = finished
    before = {file: file.stat().st_mtime_ns for file in output.glob("cells/*/*")}
    started = time.monotonic()
    again = finepruner("run", config, "--output", output)
    assert time.monotonic() - started < 60 and "4 done before, 0 to do" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in output.glob("cells/*/*")} == before
    assert len(list(output.glob("launches/*"))) == 1
    assert again.stdout.partition("\n\n")[2] == first.stdout.partition("\n\n")[2]  # the same leaderboard


def test_plan_status_and_table(finished, tmp_path):
    config, output, _ = finished
    plan = finepruner("plan", config, "--output", output, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["state"] for line in plan] == ["done"] * 4
    status = finepruner("status", output).stdout
    assert "4 done, 0 running, 0 failed, 0 missing" in status and "gqa · uniform 64" in status
    picture = tmp_path / "board.png"
    table = finepruner("table", output, "--format", "csv", "--picture", picture).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    contract = ["method", "budget", "gqa", "mme", "average", "relative"]
    assert list(rows[0])[: len(contract)] == contract and picture.stat().st_size > 5000
    assert [row["method"] for row in rows] == ["vanilla", "uniform"]


def test_a_result_that_was_spoiled_is_computed_again_and_a_terminal_sees_bars(finished):
    config, output, _ = finished
    file = next(output.glob("cells/mme-uniform-64-*/result.json"))
    good = json.loads(file.read_text())
    file.write_text(json.dumps(good | {"metrics": {"mme_perception_score,none": "N/A"}}))
    status = finepruner("status", output).stdout
    assert "1 failed" in status and "'N/A', not a number" in status
    ours, theirs = pty.openpty()
    command = [*COMMAND, "run", str(config), "--output", str(output)]
    run = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, env=environment() | {"TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)
    seen = b""
    while chunk := _read(ours):
        seen += chunk
    assert run.wait(60) == 0
    text = seen.decode()
    assert "\x1b[" in text and "━" in text  # bars, drawn over and over
    assert "4/4" in text and "mme · uniform 64" in text and "relative" in text
    again = json.loads(file.read_text())
    assert again["metrics"] == good["metrics"] and again["samples_sha256"] == good["samples_sha256"]
    assert (file.parent / "result.json.damaged").exists() and (file.parent / "attempt-2").is_dir()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_two_processes_answer_as_one(finished, tmp_path):
    _, output, _ = finished
    finepruner("run", matrix(tmp_path, processes=2), "--output", tmp_path / "two")
    assert answers(tmp_path / "two") == answers(output)
    assert traces(tmp_path / "two") == traces(output)
    assert {result["processes"] for result in results(tmp_path / "two").values()} == {2}
    for key in ("metrics", "cost"):
        assert {k: r[key] for k, r in results(tmp_path / "two").items()} == {
            k: r[key] for k, r in results(output).items()
        }


def traces(output):
    """By cell and question: before which layers tokens were dropped, and which were left."""
    return {
        folder.name: {
            number: [(stage.layer, stage.kept.tolist()) for stage in one.stages]
            for number, one in read_traces(folder).items()
        }
        for folder in output.glob("cells/*")
    }


@pytest.mark.parametrize("mode", ["packed", "isolated"])
def test_other_modes_give_the_same_answers_scores_and_costs(finished, tmp_path, mode):
    _, output, _ = finished
    config = matrix(tmp_path, processes=2, mode=mode, tasks="gqa")
    if mode == "isolated":  # each cell takes the time of a whole start
        config.write_text(config.read_text().replace("  - vanilla\n", ""))
    finepruner("run", config, "--output", tmp_path / "out")
    found, expected = results(tmp_path / "out"), results(output)
    assert len(found) == (1 if mode == "isolated" else 2)
    for name, result in found.items():
        assert answers(tmp_path / "out")[name] == answers(output)[name]
        assert traces(tmp_path / "out")[name] == traces(output)[name]
        for figure in ("metrics", "percent", "standard_error", "cost"):
            assert result[figure] == expected[name][figure]
    if mode == "isolated":
        (typed,) = (tmp_path / "out").glob("cells/*/attempt-1/command.txt")
        assert " -m lmms_eval --model llava_finepruner --model_args pretrained=demo,method=uniform,budget=64 " in (
            typed.read_text()
        )


def test_a_worker_that_is_killed_costs_only_what_it_had_not_answered(tmp_path):
    output = tmp_path / "out"
    config = matrix(tmp_path, tasks="gqa", limit=64, budgets=64)
    run = subprocess.Popen(
        [*COMMAND, "run", str(config), "--output", str(output)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    status = wait_for(lambda: running(output))
    os.kill(status["pid"], signal.SIGKILL)
    out, _ = run.communicate(timeout=400)
    assert run.returncode == 0, out
    assert "ended in the middle of the cell" in out and "starting again" in out
    assert (status["folder"] / "attempt-2").is_dir() and not (status["folder"] / "cache").exists()
    result = results(output)[status["folder"].name]
    assert result["answered"] == result["expected"] == result["cost"]["questions"] == 64
    assert result["speed"]["questions"] == 64 and result["speed"]["attempts"] == 2
    assert result["traces"]["questions"] == len(traces(output)[status["folder"].name]) == 64
    second = [json.loads(line) for line in (output / "launches" / "2" / "events.jsonl").read_text().splitlines()]
    asked = next(line["total"] for line in second if line["event"] == "progress")
    assert 0 < asked < 64  # the rest came from the first attempt


def test_stopping_a_run_leaves_no_process_and_loses_nothing(tmp_path):
    output = tmp_path / "out"
    config = matrix(tmp_path, tasks="gqa, pope, vizwiz", limit=240)
    command = [*COMMAND, "run", str(config), "--output", str(output)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    status = wait_for(lambda: running(output))
    refused = finepruner("run", config, "--output", output, expect=2)
    assert f"in use by process {run.pid} on " in refused.stderr
    # none is between two cells, two where they are answered together
    wait_for(lambda: ", 0 running" not in finepruner("status", output).stdout, 60)
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "stopped; what is done is kept" in out
    wait_for(lambda: not alive(status["pid"]), 10)
    assert "0 running" in finepruner("status", output).stdout

    # now the run itself is killed and cannot clean up: the worker ends by itself
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    status = wait_for(lambda: (s := running(output)) and s["attempt"] > status["attempt"] and s)
    run.kill()
    run.wait()
    wait_for(lambda: not alive(status["pid"]), 10)
    assert "0 running" in finepruner("status", output).stdout
    with Store(output).lock():  # free for the next run
        pass


def test_a_failing_cell_stops_nothing_and_its_repair_is_noticed(tmp_path):
    root = tmp_path / "root"
    for name in ("gqa", "mme"):
        shutil.copytree(data_root("demo") / name, root / name)
    images = next((root / "gqa" / "testdev_balanced_images").glob("*.parquet"))
    whole = images.read_bytes()
    table = pq.read_table(images)
    rows = table.to_pylist()
    for row in rows[1:]:  # the first is looked at before anything is launched
        row["image"]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), images)
    config, output = matrix(tmp_path, data=root), tmp_path / "out"
    run = finepruner("run", config, "--output", output, expect=1)
    assert run.stdout.count("] failed") == 2 and run.stdout.count("] done") == 2
    assert run.stderr.count("failed: gqa · ") == 2
    assert sorted(name.partition("-")[0] for name in results(output)) == ["mme", "mme"]
    assert len(list(output.glob("launches/*"))) == 1  # one process goes on after a failure
    assert "2 done, 0 running, 2 failed" in finepruner("status", output).stdout
    rows = list(csv.DictReader(io.StringIO(finepruner("table", output, "--format", "csv").stdout)))
    assert all(row["gqa"] == "" and float(row["mme"]) > 0 and row["average"] == "" for row in rows)

    images.write_bytes(whole)
    plan = finepruner("plan", config, "--output", output, "--format", "jsonl").stdout.splitlines()
    assert sorted(json.loads(line)["state"] for line in plan) == ["done", "done", "missing", "missing"]


def test_requests_that_are_wrong_run_nothing(tmp_path):
    config = matrix(tmp_path, tasks="gqa, mne")
    refused = finepruner("run", config, "--output", tmp_path / "out", expect=2)
    assert refused.stderr.startswith(f"{config}:4:14: tasks.1: unknown task 'mne'") and not (tmp_path / "out").exists()
    assert "is not a folder" in finepruner("table", tmp_path / "nowhere", expect=2).stderr
    assert "format: got 'html'" in finepruner("table", tmp_path, "--format", "html", expect=2).stderr
    assert "data: 'nowhere' is neither" in finepruner("tasks", "--data", "nowhere", expect=2).stderr


def test_a_worker_that_cannot_start_says_why(tmp_path):
    # a checkpoint whose configuration is fine and whose weights are not there
    from finepruner_lmms.checkpoints.fetch import DEMO

    model = tmp_path / "model"
    shutil.copytree(DEMO, model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = matrix(tmp_path)
    config.write_text(config.read_text().replace("pretrained: demo", f"pretrained: {model}"))
    run = finepruner("run", config, "--output", tmp_path / "out", expect=1)
    assert "the worker could not start: " in run.stdout and "pretrained: cannot load" in run.stdout
    assert run.stderr.count("missing: ") == 4


def test_help_is_immediate():
    started = time.monotonic()
    assert "leaderboard" in finepruner("--help").stdout
    assert time.monotonic() - started < 5
