"""Files for servers: written by the tasks through lmms-eval, checked, refused where something is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import openpyxl
import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from oracle import Oracle

from finepruner_lmms.benchmarks import submission
from finepruner_lmms.benchmarks.submission import SERVED
from finepruner_lmms.data import task_folders as tasks
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.yaml_places import ConfigError

SIZE = {"vqav2": 6, "vizwiz": 6, "mmbench": 8, "mmbench_cn": 8}
# nobody has the answers of a test split
HIDDEN = {
    "vqav2": ["multiple_choice_answer", "answers", "answer_type"],
    "vizwiz": ["answers"],
    "mmbench": ["answer"],
    "mmbench_cn": ["answer"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with a few questions of each test split, and GQA, which is scored here."""
    root = tmp_path_factory.mktemp("root")
    for name, size in SIZE.items():
        rows = datasets.load_dataset("parquet", data_files=str(tasks.data_root("demo") / name / "*.parquet"))["train"]
        (root / name / "test").mkdir(parents=True)
        rows.select(range(size)).remove_columns(HIDDEN[name]).to_parquet(root / name / "test" / "part.parquet")
    (root / "gqa").symlink_to(tasks.data_root("demo") / "gqa")
    return root


def questions(root: Path, name: str) -> list:
    rows = datasets.load_dataset("parquet", data_files=str(root / name / "test" / "*.parquet"))["train"]
    return rows[SERVED[name].column]


def evaluate(root: Path, name: str, answer, output: Path, limit: int | None = None) -> list[Path]:
    folder = tasks.folder(str(root), submission=True)
    manager = TaskManager(include_path=str(folder), include_defaults=False, model_name="llava_finepruner")
    simple_evaluate(
        model=Oracle(answer),
        tasks=[f"fp_{name}"],
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        datetime_str="t",
        cli_args=SimpleNamespace(output_path=str(output), process_with_media=True, limit=limit),
    )
    return sorted((output / "submissions").glob("*")) if (output / "submissions").exists() else []


@pytest.mark.parametrize("name", ["vqav2", "vizwiz"])
def test_short_answers_are_listed_as_evalai_wants_them(root, name, tmp_path):
    (path,) = evaluate(root, name, lambda doc: " The Two dogs.", tmp_path)
    entries = json.loads(path.read_text())
    asked = questions(root, name)
    key = "question_id" if name == "vqav2" else "image"
    assert entries == [{key: question, "answer": "2 dogs"} for question in asked]
    assert submission.check(path, name, asked) == len(asked) == 6


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_mmbench_is_a_spreadsheet_with_every_order(root, name, tmp_path):
    answers = iter(["A", "B. 红", "=1+1", "", "bell\x07", "C", "D", "D"])
    (path,) = evaluate(root, name, lambda doc: next(answers), tmp_path)
    header, *rows = openpyxl.load_workbook(path).worksheets[0].values
    assert header == ("index", "question", "A", "B", "C", "D", "prediction")
    assert [row[0] for row in rows] == questions(root, name)
    assert [row[-1] for row in rows] == ["A", "B. 红", "=1+1", None, "bell", "C", "D", "D"]
    assert all(isinstance(row[2], str) for row in rows)
    assert submission.check(path, name, questions(root, name)) == 8


def test_nothing_is_written_twice_to_one_place_or_cut_short(root, tmp_path):
    assert evaluate(root, "vizwiz", lambda doc: "a", tmp_path, limit=3) == []  # it would lack questions
    first = evaluate(root, "vizwiz", lambda doc: "a", tmp_path)
    content = first[0].read_bytes()
    assert len(evaluate(root, "vizwiz", lambda doc: "b", tmp_path)) == 2
    assert first[0].read_bytes() == content


def test_a_task_without_a_server_is_scored_as_ever(root):
    folder = tasks.folder(str(root), submission=True)
    assert sorted(file.stem for file in folder.glob("fp_*.yaml")) == sorted(["fp_gqa", *(f"fp_{n}" for n in SIZE)])
    assert "submission" not in (folder / "fp_gqa.yaml").read_text()
    assert "test_split: test" in (tasks.folder("hub", submission=True) / "fp_vqav2.yaml").read_text()
    assert "dataset_path" not in (tasks.folder("hub", submission=True) / "fp_vqav2.yaml").read_text()  # the hub's


GOOD = [{"question_id": 1, "answer": "a"}, {"question_id": 2, "answer": ""}]


@pytest.mark.parametrize(
    "content, complaint",
    [
        (GOOD[:1], "1 questions are missing (such as 2)"),
        ([*GOOD, GOOD[0]], "1 questions are answered twice (such as 1)"),
        ([*GOOD, {"question_id": 3, "answer": "a"}], "1 questions are not of this split (such as 3)"),
        ([*GOOD[:1], {"question_id": "2", "answer": "a"}], "missing"),  # a text is no number
        ([*GOOD[:1], {"question_id": 2, "answer": None}], "entry 2: answer is None; expected a text"),
        ([*GOOD[:1], {"id": 2, "answer": "a"}], "expected the keys question_id, answer"),
        ({"1": "a"}, "got dict; expected a list"),
    ],
)
def test_a_file_that_the_server_would_refuse_is_refused(tmp_path, content, complaint):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(GOOD))
    assert submission.check(path, "vqav2", [1, 2]) == 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        submission.check(path, "vqav2", [1, 2])
    assert complaint in str(error.value) and str(path) in str(error.value)


def test_a_spreadsheet_that_is_none_is_refused(tmp_path):
    path = tmp_path / "file.xlsx"
    path.write_text("no zip")
    with pytest.raises(ValueError, match="cannot be read as a spreadsheet"):
        submission.check(path, "mmbench", [1])
    submission.write(path, "mmbench", [dict.fromkeys(SERVED["mmbench"].keys, "x") | {"index": 1}])
    assert submission.check(path, "mmbench", [1]) == 1
    with pytest.raises(ValueError, match="1 questions are missing"):
        submission.check(path, "mmbench", [1, 1_000_001])


# -- in a matrix ------------------------------------------------------------------------------------------------------

MATRIX = """\
name: submit
model: {{pretrained: demo}}
data: {root}
tasks: [{tasks}]
submission: true
methods: [{{method: uniform, budget: 32}}]
"""


def write(folder: Path, root: Path | str, names: str) -> Path:
    file = folder / "matrix.yaml"
    file.write_text(MATRIX.format(root=root, tasks=names), encoding="utf-8")
    return file


def test_mistakes_about_submissions_are_named(root, tmp_path):
    with pytest.raises(ConfigError, match="submission: none of the tasks has a server; these have: vqav2, vizwiz"):
        load_matrix(write(tmp_path, root, "gqa"))
    file = write(tmp_path, root, "vizwiz")
    file.write_text(file.read_text() + "limit: 4\n")
    with pytest.raises(ConfigError, match=r":7:1: limit: got 4; a submission needs every question"):
        load_matrix(file)
    with pytest.raises(ConfigError, match="has no folder vizwiz/test, whose questions a submission answers"):
        load_matrix(write(tmp_path, tasks.data_root("demo"), "vizwiz"))
    with pytest.raises(ValueError, match="holds no folder test in any of vqav2"):
        tasks.folder(str(tasks.data_root("demo")), submission=True)


@pytest.mark.slow
def test_a_sweep_leaves_the_files_in_the_cells_and_says_so(root, tmp_path):
    config, output = write(tmp_path, root, "vizwiz, mmbench"), tmp_path / "out"
    shown = command("run", config, "--output", output)
    assert "submission.json written, 6 questions" in shown and "submission.xlsx written, 8 questions" in shown
    for name in ("vizwiz", "mmbench"):
        (path,) = output.glob(f"cells/{name}-*/submission.*")
        assert submission.check(path, name, questions(root, name)) == SIZE[name]
    assert "2 done" in command("status", output)
    table = command("table", output, "--format", "markdown")
    assert table.count("submission written") == 2 and "0.0" not in table
    assert "VizWiz, MMBench: for its server" in table
    assert "2 done before, 0 to do" in command("run", config, "--output", output)
    path.write_bytes(b"")
    assert "submission.xlsx was changed after the result was written" in command("status", output)


def command(*arguments: object) -> str:
    line = [sys.executable, "-m", "finepruner_lmms.cli", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=400, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
