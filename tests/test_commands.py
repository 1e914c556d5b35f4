"""What the small commands say: versions, methods, completion, status for programs, a limit on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finepruner_lmms as fp
from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.cli import app
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.study import open_study
from finepruner_lmms.pruners.registry import method_class

BASELINES = ("blind", "downsample", "pool", "random", "uniform", "vanilla")  # nobody published them as methods
NO_ADDRESS = ("coreprune", "visualheads")  # of the first no paper was found, the second is ours
STUDY = """\
name: small
model: {pretrained: demo}
data: demo
tasks: [pope, mme]
methods:
  - vanilla
  - {method: fastv, budget: 64}
"""


def say(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.stderr


@pytest.fixture
def study(tmp_path) -> Path:
    (tmp_path / "m.yaml").write_text(STUDY)
    return tmp_path / "m.yaml"


def test_the_version_is_one_line_and_loads_nothing():
    program = (
        "import sys\nfrom finepruner_lmms.cli import app\napp(['--version'], standalone_mode=False)\n"
        "assert not {'torch', 'lmms_eval', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("finepruner_lmms ") and "lmms_eval " in done.stdout


def test_all_methods_are_listed_with_parameters_and_papers():
    text = say("methods")
    assert [name for name in fp.METHODS if f"\n{name} " not in f"\n{text}"] == []
    found = {one["name"]: one for one in json.loads(say("methods", "--json"))}
    assert sorted(found) == fp.METHODS
    for name, one in found.items():
        assert one["parameters"] == fp.build_pruner(name).parameters() and one["summary"]
        assert name in BASELINES + NO_ADDRESS or one["paper"] or one["code"], name
    pages = "".join(page.read_text() for page in (Path(__file__).parents[1] / "docs").glob("methods*.md"))
    for one in found.values():
        for link in filter(None, (one["paper"], one["code"])):
            assert f"({link})" in pages, link


def test_one_method_is_told_with_what_its_parameters_may_be():
    text = say("methods", "fastv+finepruner")
    assert text.startswith("finepruner (also fastv+finepruner): inside the language model")
    assert "head_strategy: default sum; known: consensus, fixed, profile, recommended, " in text
    assert "budget: required" in text
    assert "query: default last; known: last, adaptive_by_length" in text
    assert "did you mean 'fastv'" in say("methods", "fastvv", status=2)


def test_a_method_that_derives_from_another_has_not_its_paper():
    class Own(method_class("fastv")):  # type: ignore[misc]
        pass

    from finepruner_lmms.commands.methods import _facts

    assert _facts(Own)["paper"] == "" and _facts(method_class("fastv"))["paper"]


def test_a_shell_completes_commands_and_options():
    def complete(*words: str) -> str:
        given = {
            "_FINEPRUNER_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        program = "import sys; sys.argv[0] = 'finepruner'; from finepruner_lmms.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | given
        ).stdout

    assert complete("finepruner", "stat").split() == ["status"]
    assert "--max-attempts" in complete("finepruner", "run", "--max").split()


def test_a_limit_of_the_command_line_goes_before_the_files(study, tmp_path):
    lines = [json.loads(line) for line in say("plan", study, "--limit", 8, "--format", "jsonl").splitlines()]
    assert {line["limit"] for line in lines} == {8}
    whole = [json.loads(line) for line in say("plan", study, "--format", "jsonl").splitlines()]
    assert not {line["id"] for line in lines} & {line["id"] for line in whole}
    said = say("plan", study, "--limit", 1, status=2)
    assert said == "--limit: got 1; mme asks two questions per image, so give at least 2\n"
    study.write_text(STUDY.replace("data: demo", "data: demo\nlimit: 1"))
    assert "4 to do" in say("plan", study, "--limit", 8)


def test_status_for_programs_says_what_status_says(study, tmp_path):
    _, store, planned = open_study(study, tmp_path / "run")
    store.save_study(planned)
    done, failed = planned.cells[0], planned.cells[1]
    assert begin_attempt(store.cell_dir(done), "1").is_dir()
    about = {"id": done.id, "spec": done.spec(), "seconds": 1.0, "finished": "2026-01-01T00:00:00+00:00"}
    counted = {"answered": 1, "expected": 1, "batch_size": 1, "processes": 1, "device": "cpu"}
    scored = {"metrics": {BENCHMARKS["pope"].metric: 1.0}, "percent": 100.0, "standard_error": None}
    sample = {"doc_id": 0, "target": "yes", "answer": "yes", "image": "a"}
    write_result(store.cell_dir(done), about | counted | scored, [sample])
    store.cell_dir(failed).mkdir(parents=True)
    error = {"error": "ValueError", "message": "a \x1b[31mred\n text"}
    (store.cell_dir(failed) / "error.json").write_text(json.dumps(error))
    found = json.loads(say("status", tmp_path / "run", "--json"))
    assert found["counts"] == {"done": 1, "running": 0, "waiting": 0, "failed": 1, "missing": 2}
    assert (found["study"], found["running"], found["others"], found["jobs"]) == ("small", False, 0, [])
    first, second, *_ = found["cells"]
    assert (first["state"], first["percent"], first["method"], first["task"]) == ("done", 100.0, "vanilla", "pope")
    assert second["state"] == "failed" and second["reason"] == "ValueError: a \x1b[31mred\n text"
    assert "small: 1 done, 0 running, 1 failed, 2 missing" in say("status", tmp_path / "run")


def test_tasks_are_found_by_a_word_in_their_names():
    lines = say("tasks", "--find", "mmmu_").splitlines()
    assert "mmmu_val" in lines and not any(line.startswith("chartqa") for line in lines)
    assert say("tasks", "--find", "pope").splitlines()[0] == "pope"
    assert any("  (is a group: " in line for line in say("tasks", "--find", "mmmu").splitlines())
