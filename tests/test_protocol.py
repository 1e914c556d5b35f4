"""The switch between LLaVA's rules and lmms-eval's, and what lmms-eval's own statistics make of our tasks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import scoring_cases
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config
from oracle import Oracle
from scoring_cases import CASES
from test_scoring_cases import entry_of, ids
from typer.testing import CliRunner

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.protocol import applied
from finepruner_lmms.cli import app
from finepruner_lmms.data import task_folders as tasks
from finepruner_lmms.matrix.cells import expand
from finepruner_lmms.matrix.config import load_matrix


@pytest.fixture(scope="module")
def other() -> dict:
    folder = tasks.folder("hub", protocol="lmms_eval")
    files = {name: folder / f"fp_{name}.yaml" for name in scoring_cases.TITLES}
    return {name: load_yaml_config(yaml_path=str(file))["process_results"] for name, file in files.items()}


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_under_the_other_protocol_an_answer_counts_what_lmms_eval_gives(case, other):
    assert entry_of(case, other[case.task])["score"] == pytest.approx(case.lmms)


def test_popes_f1_is_then_over_all_questions(other):
    docs = [
        {"question_id": i, "answer": "yes", "category": kind} for i, kind in enumerate(("random", "random", "popular"))
    ]
    said = ["yes", "No.", "yes"]  # "No." is neither: it misses nothing
    entries = [other["pope"](doc, [one])["pope_f1_mean"] for doc, one in zip(docs, said, strict=True)]
    samples = [{"doc_id": i, "pope_f1_mean": entry} for i, entry in enumerate(entries)]
    assert BENCHMARKS["pope"].value(samples) == 1


def test_a_task_with_one_way_of_scoring_is_the_same_under_both():
    assert {name for name in BENCHMARKS if applied(name, "lmms_eval") == "llava"} == {"textvqa", "mmvet"}
    text = (tasks.folder("demo", protocol="lmms_eval") / "fp_textvqa.yaml").read_text()
    assert "process_results" not in text and "lmms_eval_results" not in text


def test_tasks_of_a_protocol_are_printed_and_an_unknown_one_is_refused():
    plain = CliRunner().invoke(app, ["tasks", "--data", "hub"]).output
    other = CliRunner().invoke(app, ["tasks", "--data", "hub", "--protocol", "lmms_eval"]).output
    assert plain != other and other.strip() == str(tasks.folder("hub", protocol="lmms_eval"))
    refused = CliRunner().invoke(app, ["tasks", "--protocol", "lmms-eval"])
    assert refused.exit_code and "lmms_eval" in str(refused.exception) + refused.output


def test_the_protocol_is_part_of_what_a_cell_is(tmp_path):
    text = "name: a\nmodel: {pretrained: demo}\ndata: demo\nlimit: 4\ntasks: [gqa, textvqa]\nmethods: [vanilla]\n"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text + "protocol: lmms_eval\n")
    plain, other = (expand(load_matrix(tmp_path / name)) for name in ("a.yaml", "b.yaml"))
    assert plain[0].id != other[0].id and plain[1].id == other[1].id  # TextVQA is scored alike
    assert other[0].spec()["protocol"] == "lmms_eval" and "protocol" not in plain[0].spec()


# -- lmms-eval's own statistics ----------------------------------------------------------------------------------------


def right_but(every: int):
    """Right, but for every so-manieth question about an image."""

    def answer(doc) -> str:
        known = doc["answers"][0] if "answers" in doc else doc["answer"]
        known = known["answer"] if isinstance(known, dict) else known
        wrong = {"yes": "no", "no": "yes", "A": "B"}.get(known.lower() if len(known) > 1 else known, "A")
        return wrong if len(doc["question"]) % every == 0 else known

    return answer


def run(name: str, answer, folder, limit: int, baseline: str | None = None) -> dict:
    manager = TaskManager(
        include_path=str(tasks.folder("demo", limit=limit)), include_defaults=False, model_name="llava_finepruner"
    )
    tracker, stamp = EvaluationTracker(output_path=str(folder)), "20260101_000000"
    out = simple_evaluate(
        model=Oracle(answer), model_args="pretrained=demo", tasks=[f"fp_{name}"], task_manager=manager,
        log_samples=True, bootstrap_iters=0, datetime_str=stamp, evaluation_tracker=tracker, baseline=baseline,
        cli_args=SimpleNamespace(output_path=str(folder), process_with_media=False),
    )  # fmt: skip
    samples = out.pop("samples")
    tracker.save_results_aggregated(results=out, samples=samples, datetime_str=stamp)
    tracker.save_results_samples(task_name=f"fp_{name}", samples=samples[f"fp_{name}"])
    return out["results"][f"fp_{name}"]


@pytest.mark.parametrize("name", ["gqa", "vqav2", "pope", "mme", "mmbench"])
def test_lmms_evals_baseline_compares_question_by_question(name, tmp_path):
    run(name, right_but(2), tmp_path / "before", 40)
    (file,) = (tmp_path / "before").rglob(f"*_samples_fp_{name}.jsonl")
    before = [json.loads(line)["score"] for line in file.read_text().splitlines()]
    found = run(name, right_but(1000), tmp_path / "after", 40, baseline=str(file))
    assert found["paired_baseline_score"] == pytest.approx(100 * sum(before) / len(before)) and sum(before) > 0
    assert found["paired_ci_lower"] < 100 - found["paired_baseline_score"] < found["paired_ci_upper"]


@pytest.mark.parametrize("name, metric", [("vqav2", "exact_match_by_image"), ("pope", "pope_accuracy")])
def test_lmms_evals_clustered_error_counts_images(name, metric, tmp_path):
    found = run(name, right_but(3), tmp_path, 40)
    assert found[f"{metric}_stderr_clustered,none"] > 0
    assert found[f"{metric}_stderr_clustered,none"] != pytest.approx(found[f"{metric}_stderr_clt,none"])
