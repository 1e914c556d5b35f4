"""What a plain lmms_eval run leaves is read as what the same cell gives in the worker."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager
from studies import cell, method

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data import task_folders
from finepruner_lmms.judge.settings import VARIABLE as JUDGE
from finepruner_lmms.lmms.identity import cell_identity
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.plain_run import VARIABLE
from finepruner_lmms.matrix.evaluate import InvalidResult, collect_cell, evaluate_cell
from finepruner_lmms.matrix.plan import Cell

LIMIT = 4
TASKS = ("textvqa", "mme", "mmvet")  # several targets, pairs of questions, and what a judge scores


@pytest.fixture(scope="module")
def lm() -> LlavaFinePruner:
    return LlavaFinePruner(pretrained="demo", batch_size=4, method="random", budget=16)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    folder = str(task_folders.folder("demo", limit=LIMIT))
    return TaskManager(include_path=folder, include_defaults=False, model_name="llava_finepruner")


def planned(lm, task: str) -> Cell:
    identity = cell_identity(lm.answer_identity(), task, LIMIT, False, "")
    return cell("c", task, 0, method("random", 16), limit=LIMIT, identity=identity)


def plain_run(lm, manager, task: str, folder: Path) -> None:
    """What `python -m lmms_eval --output_path FOLDER --log_samples` does once the model is loaded."""
    tracker, stamp = EvaluationTracker(output_path=str(folder)), "20260101_000000"
    out = simple_evaluate(
        model=lm, model_args="pretrained=demo", tasks=[task], task_manager=manager, batch_size=4, log_samples=True,
        bootstrap_iters=0, datetime_str=stamp, evaluation_tracker=tracker,
        cli_args=SimpleNamespace(output_path=str(folder), process_with_media=False),
    )  # fmt: skip
    samples = out.pop("samples")
    tracker.save_results_aggregated(results=out, samples=samples, datetime_str=stamp)
    tracker.save_results_samples(task_name=task, samples=samples[task])


@pytest.fixture(scope="module")
def runs(lm, manager, tmp_path_factory) -> Path:
    """A folder `<task>/attempt` and a journal `<task>/cache` for each task."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(JUDGE, "later")
        for task in TASKS:
            patch.setenv(VARIABLE, str(folder / task / "cache"))
            plain_run(lm, manager, BENCHMARKS[task].task, folder / task / "attempt")
    return folder


def test_lmms_evals_efficiency_counts_tokens_and_scores(runs):
    (file,) = (runs / "mme" / "attempt").rglob("*_results.json")
    found = json.loads(file.read_text())["efficiency"]["by_task"]["fp_mme"]
    assert found["docs"] == found["docs_with_token_counts"] == LIMIT and found["total_input_tokens"] > LIMIT
    (samples,) = (runs / "mme" / "attempt").rglob("*_samples_fp_mme.jsonl")
    right = sum(json.loads(line)["score"] for line in samples.read_text().splitlines())
    assert found["total_correct_score"] == right


@pytest.mark.parametrize("task", TASKS)
def test_a_plain_run_gives_what_the_worker_gives(lm, manager, runs, tmp_path, monkeypatch, task):
    monkeypatch.setenv(JUDGE, "later")
    one = planned(lm, task)
    mine, samples = evaluate_cell(lm, manager, one, tmp_path / "attempt", tmp_path / "cache")
    found, read = collect_cell(manager, one, runs / task / "attempt", runs / task / "cache")
    assert json.dumps(read) == json.dumps(samples) and len(read) == LIMIT
    unlike = {"speed": None}
    assert found.model_copy(update=unlike) == mine.model_copy(update=unlike)
    assert (found.cost["questions"], found.speed.questions, found.speed.attempts) == (LIMIT, LIMIT, 1)


def test_the_worker_goes_on_with_the_journal_of_a_plain_run(lm, manager, runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "mme" / "cache", tmp_path / "cache")
    monkeypatch.setattr("finepruner_lmms.lmms.answering.generate", None)
    outcome, _ = evaluate_cell(lm, manager, planned(lm, "mme"), tmp_path / "attempt", tmp_path / "cache")
    assert outcome.answered == outcome.speed.questions == LIMIT


def _drop(pattern: str):
    return lambda folder: next(folder.rglob(pattern)).unlink()


def _cut(pattern: str):
    def spoil(folder: Path) -> None:
        file = next(folder.rglob(pattern))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def _no_number(folder: Path) -> None:
    file = next(folder.rglob("*_results.json"))
    content = json.loads(file.read_text())
    content["results"]["fp_mme"]["mme_perception_score,none"] = "N/A"
    file.write_text(json.dumps(content))


def _without_a_sample(folder: Path) -> None:
    file = next(folder.rglob("*_samples_*"))
    file.write_text(file.read_text().split("\n", 1)[1])


def _other_code(folder: Path) -> None:
    file = folder / "cache" / "identity.json"
    content = json.loads(file.read_text())
    content["identity"]["engine"]["engine"] = "another"
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (_drop("*_results.json"), "0 files"),
        (_drop("*_samples_*"), "0 files"),
        (_cut("*_results.json"), "no whole result"),
        (_cut("*_samples_*"), "no whole result"),
        (_cut("answers-rank0.jsonl"), "answers, 4 expected"),
        (_drop("identity.json"), "no whole result"),
        (_cut("identity.json"), "no whole result"),
        (_no_number, "not a number"),
        (_without_a_sample, "3 different questions answered, 4 expected"),
        (_other_code, "the code of engine changed"),
    ],
)
def test_a_run_that_did_not_end_well_is_no_result(lm, manager, runs, tmp_path, spoil, reason):
    shutil.copytree(runs / "mme", tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(InvalidResult, match=reason):
        collect_cell(manager, planned(lm, "mme"), tmp_path / "run" / "attempt", tmp_path / "run" / "cache")
