"""MM-Vet by lmms-eval itself, in a plain run and in a matrix; the judge is exact, or a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from judge_server import JudgeServer, fails, knows
from test_tasks import evaluate

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.claims import Locked, is_locked, lock
from finepruner_lmms.data import task_folders as tasks
from finepruner_lmms.judge import mmvet_task as mmvet
from finepruner_lmms.judge.mmvet import CAPABILITIES, check_entries, totals
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.tables import render
from finepruner_lmms.matrix.store import Store

KEY = "sk-secret-0123456789"
COMMAND = [sys.executable, "-m", "finepruner_lmms.cli"]
METRIC = "gpt_eval_score"


def table() -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files=str(tasks.data_root("demo") / "mmvet/*.parquet"), split="train")


def test_the_miniature_has_the_columns_and_forms_of_the_real_one():
    rows = table()
    columns = ["question_id", "image", "question", "answer", "image_source", "capability"]
    assert rows.column_names == [*columns, "evidence"]  # the last is the miniature's own
    assert len(rows) == 120 and rows["question_id"][:2] == ["v1_0", "v1_1"]
    needed = {name for row in rows["capability"] for name in row.split(",")}
    assert needed == {"rec", "ocr", "spat", "math"} and needed < set(CAPABILITIES)
    assert any("<OR>" in answer for answer in rows["answer"])


def test_lmms_eval_asks_the_bare_question_and_scores_by_the_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEPRUNER_JUDGE", "exact")

    def say(doc):
        return "It is " + doc["answer"].split("<OR>")[0] if doc["capability"] != "ocr,spat" else "no idea"

    value, samples, model = evaluate("mmvet", say, tmp_path)
    questions = table()["question"]
    assert [model.prompts[number] for number in range(120)] == questions
    scored = [sample[METRIC] for sample in samples]
    scores = totals(scored)
    assert scores["ocr"] == scores["spat"] == 0 and scores["rec"] == scores["math"] == 100
    assert value == pytest.approx(scores["total"]) and 60 < value < 90
    assert BENCHMARKS["mmvet"].value(samples) == pytest.approx(value) == BENCHMARKS["mmvet"].percent(samples)
    error = BENCHMARKS["mmvet"].standard_error(samples, [str(number) for number in range(120)])
    assert error == pytest.approx(100 * (value / 100 * (1 - value / 100) / 120) ** 0.5, rel=0.1)


def test_answers_without_a_judgement_have_no_score():
    entry = {"question_id": "v1_0", "question": "?", "gt_answer": "a", "capabilities": "rec", "pred_answer": "a"}
    with pytest.raises(ValueError, match="1 answers are not judged, such as that to v1_0"):
        BENCHMARKS["mmvet"].value([{"doc_id": 0, METRIC: entry}])
    with pytest.raises(ValueError, match="answer 0: has no 'pred_answer'"):
        check_entries([{name: value for name, value in entry.items() if name != "pred_answer"}])


def test_a_plain_run_without_a_judge_is_refused_before_a_question_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("FINEPRUNER_JUDGE", raising=False)

    def never(_doc):
        raise AssertionError("asked")

    with pytest.raises(ValueError, match="FINEPRUNER_JUDGE: MM-Vet needs a judge"):
        evaluate("mmvet", never, tmp_path, limit=2)


def test_answers_wait_in_a_file_where_the_judge_comes_later(tmp_path, monkeypatch):
    entry = {"question_id": "v1_0", "question": "?", "gt_answer": "a", "capabilities": "rec", "pred_answer": "a"}
    monkeypatch.setenv("FINEPRUNER_JUDGE", "later")
    monkeypatch.setenv("FINEPRUNER_CACHE", str(tmp_path / "cache"))
    for args, folder in ((SimpleNamespace(output_path=str(tmp_path / "out")), "out"), (None, "cache")):
        assert mmvet.aggregate([entry], args) is None
        (file,) = (tmp_path / folder / "mmvet").glob("answers-*.jsonl")
        assert json.loads(file.read_text()) == entry


def test_the_score_by_string_match_lies_beside_the_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEPRUNER_JUDGE", "exact")
    entry = {"question_id": "v1_0", "question": "?", "gt_answer": "a", "capabilities": "rec", "pred_answer": "a"}
    entries = [entry, entry | {"question_id": "v1_1", "pred_answer": "b"}]
    assert mmvet.aggregate(entries, SimpleNamespace(output_path=str(tmp_path))) == 50
    (score,) = tmp_path.glob("mmvet/answers-*.score.json")
    outcome = json.loads(score.read_text())
    assert outcome["judge"] == {"name": "exact"} and outcome["questions"] == 2 and outcome["scores"]["total"] == 50


def test_a_lock_locks_although_lmms_eval_makes_filelocks_reentrant(tmp_path):
    with lock(tmp_path / "lock"):  # lmms-eval is imported above
        assert is_locked(tmp_path / "lock")
        with pytest.raises(Locked, match=f"held by process {os.getpid()}"), lock(tmp_path / "lock"):
            pass
    assert not is_locked(tmp_path / "lock")


# -- real commands ----------------------------------------------------------------------------------------------------


def lmms_eval(out: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_finepruner", "--model_args", "pretrained=demo"]
    command += ["--tasks", "fp_mmvet", "--include_path", str(tasks.folder("demo")), "--batch_size", "8"]
    command += ["--limit", "8", "--log_samples", "--output_path", str(out)]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    return done.stdout + done.stderr


def finepruner(*arguments: object, expect: int = 0, **environment: str) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": KEY} | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == expect, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def everything_in(folder: Path) -> str:
    return "".join(file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_plain_run_whose_judge_dies_keeps_its_answers(tmp_path):
    with JudgeServer(lambda number, prompt: knows(number, prompt) if number <= 3 else fails(401, KEY)) as server:
        judge = {"FINEPRUNER_JUDGE": server.url, "FINEPRUNER_JUDGE_MODEL": "judge-1", "OPENAI_API_KEY": KEY}
        said = lmms_eval(tmp_path, **judge, FINEPRUNER_JUDGE_WORKERS="1")
    assert "MM-Vet has no score: judge http" in said and "the key in OPENAI_API_KEY is not accepted" in said
    (results,) = tmp_path.rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["fp_mmvet"][f"{METRIC},none"] is None  # none is made up
    (file,) = tmp_path.glob("mmvet/answers-*.jsonl")
    assert f"finepruner judge {file}" in said and len(file.read_text().splitlines()) == 8
    with JudgeServer(knows) as server:
        again = finepruner("judge", file, "--url", server.url, "--model", "judge-1")
        assert len(server.requests) == 5 and "total" in again.stdout
    assert json.loads(file.with_name(f"{file.name}.score.json").read_text())["scores"]["total"] >= 75
    assert KEY not in said + again.stdout + again.stderr + everything_in(tmp_path)


MATRIX = """\
name: judged
model: {{pretrained: demo}}
data: demo
tasks: [mmvet]
limit: 8
judge: {judge}
methods:
  - vanilla
  - {{method: uniform, budget: 64}}
launch: {{batch_size: 8, processes: 1}}
"""


def gone_after(count: int, file: Path, lines: int, status: int):
    """Judges `count` answers, and has gone away for the others as soon as `file` has `lines` of them.

    Eight are asked at once, and those on their way when one fails are not waited for.
    """

    def behave(number: int, prompt: str):
        if number <= count:
            return knows(number, prompt)
        end = time.monotonic() + 30
        while time.monotonic() < end and not (file.exists() and len(file.read_text().splitlines()) >= lines):
            time.sleep(0.01)
        return fails(status)

    return behave


@pytest.mark.slow
def test_a_matrix_answers_now_and_is_judged_later(tmp_path):
    config, output = tmp_path / "m.yaml", tmp_path / "out"
    config.write_text(MATRIX.format(judge="later"))
    run = finepruner("run", config, "--output", output)
    assert "waiting for the judge" in run.stdout and "100.0 %" not in run.stdout
    status = finepruner("status", output).stdout
    assert "0 done, 0 running, 0 failed, 0 missing, 2 waiting for the judge" in status
    assert "waiting  mmvet · vanilla: 8 questions answered, waiting for the judge" in status
    board = render(leaderboard(Store(output)), "text")
    assert board.count("waiting") >= 3 and " 0.0" not in board
    assert "judge: none is set; give --url and --model" in finepruner("judge", output, expect=2).stderr

    # the judge goes away in the middle, twice
    with JudgeServer(gone_after(3, output / "judgements.jsonl", 3, 404)) as server:
        died = finepruner("judge", output, "--url", server.url, "--model", "judge-1", expect=1)
    assert "404 Not Found" in died.stderr and "what is judged is kept" in died.stderr
    assert len((output / "judgements.jsonl").read_text().splitlines()) == 3
    with JudgeServer(gone_after(2, output / "judgements.jsonl", 5, 401)) as server:
        config.write_text(MATRIX.format(judge=f"{{url: '{server.url}', model: judge-1}}"))
        died = finepruner("run", config, "--output", output, expect=1)
    assert "401 Unauthorized" in died.stdout and "the answers are kept" in died.stdout
    assert died.stderr.count("waiting: mmvet · ") == 2
    assert len((output / "judgements.jsonl").read_text().splitlines()) == 5

    with JudgeServer(knows) as server:
        config.write_text(MATRIX.format(judge=f"{{url: '{server.url}/v1', model: judge-1, retries: 1}}"))
        run = finepruner("run", config, "--output", output)
        answers = [json.loads(line) for file in output.rglob("answers.jsonl") for line in file.read_text().splitlines()]
        different = {(answer["doc_id"], answer["answer"]) for answer in answers}
        assert len(answers) == 16 and len(server.requests) == len(different) - 5  # no answer is judged twice
        assert len(list(output.glob("launches/*"))) == 1  # and no model was loaded again
    assert "MM-Vet is judged by judge-1-served." in run.stdout and "waiting" not in run.stdout.partition("\n\n")[2]
    rows = list(csv.DictReader(io.StringIO(render(leaderboard(Store(output)), "csv"))))
    assert [row["method"] for row in rows] == ["vanilla", "uniform"] and float(rows[0]["mmvet"]) >= 75
    assert "mmvet · vanilla" in finepruner("judge", output, "--exact").stdout  # anew, by another judge
    assert "MM-Vet (exact)" in render(leaderboard(Store(output)), "latex")
    assert "not comparable with published scores" in finepruner("table", output).stdout
    assert "difference" in finepruner("compare", output, "vanilla", "uniform 64").stdout
    assert KEY not in everything_in(tmp_path) + run.stdout + run.stderr + died.stderr
