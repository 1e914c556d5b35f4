"""Results of other runs as rows: rescored, paired where questions are the same, refused where they are not whole."""

from __future__ import annotations

import json
import math

import foreign_runs as foreign
import pytest
from pages import texts
from studies import method, stored_cell, study
from typer.testing import CliRunner

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.cli import app
from finepruner_lmms.matrix.rescoring import rescore
from finepruner_lmms.matrix.results import read_lines, write_result
from finepruner_lmms.matrix.store import Store

KINDS = ("adversarial", "popular", "random")
TARGETS = ["yes", "no", "no", "yes", "yes", "no"]
MINE = ["yes", "no", "yes", "yes", "no", "no"]
THEIRS = ["Yes", "No, there is not.", "no", "yes", "yes", "no"]


def finish(store: Store, one, samples, **result) -> None:
    """Write a finished cell as a run does."""
    benchmark = BENCHMARKS[one.task]
    metric = benchmark.metric.partition(",")[0]
    lines = [{**sample, metric: sample["score"]} for sample in samples]
    images = {sample["doc_id"]: sample["image"] for sample in samples}
    scores = {
        "metrics": {benchmark.metric: benchmark.value(lines)},
        "percent": benchmark.percent(lines),
        "standard_error": benchmark.standard_error(lines, images),
    }
    folder = store.cell_dir(one)
    folder.mkdir(parents=True)
    count = {"answered": len(samples), "expected": len(samples), "seconds": 1.0}
    write_result(folder, {"id": one.id, "spec": one.spec()} | count | scores | result, samples)


def pope_lines(answers):
    """Samples of a row that was run here: two questions to each of three pictures."""
    lines = []
    for number, (target, said) in enumerate(zip(TARGETS, answers, strict=True)):
        entry = {"question_id": str(number // 2), "score": float(target == said), "prediction": said}
        entry |= {"ground_truth": target, "category": KINDS[number // 2]}
        lines.append({"doc_id": number, "image": f"pic{number // 2}", "target": target, "answer": said, "score": entry})
    return lines


@pytest.fixture
def store(tmp_path) -> Store:
    """A study with one finished row on POPE."""
    made = Store(tmp_path / "run")
    rows = [method("vanilla")]
    one = stored_cell("abc", "pope", 0, rows[0], data="/nowhere")
    made.save_study(study(rows, [one]))
    finish(made, one, pope_lines(MINE))
    return made


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def bring(root, folder, label="theirs", *more):
    return run("import", root, folder, "--label", label, *more)


def their_pope(answers=THEIRS, numbers=range(6)):
    return [foreign.pope(n, TARGETS[n], answers[n]) for n in numbers]


def row_lines(root, label):
    one = next(c for c in Store(root).study().cells if c.method.label == label)
    return read_lines(Store(root).cell_dir(one) / "samples.jsonl")


def test_another_models_results_become_a_row_of_table_status_compare_report_and_query(store, tmp_path):
    foreign.write(tmp_path / "out", {"pope": their_pope()})
    said = bring(store.root, tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert "POPE: 100.0, 6 questions" in said.stdout  # "No, there is not." is no, as rows here are read
    lines = row_lines(store.root, "theirs")
    assert [line["image"] for line in lines] == ["pic0", "pic0", "pic1", "pic1", "pic2", "pic2"]
    assert [line["score"]["category"] for line in lines] == [kind for kind in KINDS for _ in range(2)]
    assert "theirs" in run("table", store.root).stdout
    assert "done     pope · theirs: 100.0 ± " in run("status", store.root).stdout
    compared = run("compare", store.root, "theirs", "vanilla")
    assert compared.exit_code == 0 and "POPE" in compared.stdout
    assert run("report", store.root).exit_code == 0
    assert "theirs" in texts((store.root / "report.html").read_text(encoding="utf-8"))


def test_an_output_is_made_and_questions_whose_pictures_are_not_known_stand_alone(tmp_path):
    foreign.write(tmp_path / "out", {"pope": their_pope()})
    said = bring(tmp_path / "new", tmp_path / "out")
    assert said.exit_code == 0
    assert "each stands alone" in said.stdout and "F1 is over all of them" in said.stdout
    assert len({line["image"] for line in row_lines(tmp_path / "new", "theirs")}) == 6
    assert "100.0" in run("table", tmp_path / "new").stdout
    assert run("report", tmp_path / "new").exit_code == 0


def test_other_right_answers_are_other_questions(store, tmp_path):
    lines = their_pope()
    lines[0] = foreign.pope(0, "no", "no")
    foreign.write(tmp_path / "out", {"pope": lines})
    said = bring(store.root, tmp_path / "out")
    assert said.exit_code == 0
    assert "the right answers of 1 of 6 questions are not those that vanilla has (document 0: 'no'" in said.stdout
    compared = run("compare", store.root, "theirs", "vanilla")
    assert (
        compared.exit_code == 2
        and "whether both rows answered the same questions of pope is not known" in compared.stderr
    )


def test_of_more_questions_than_rows_here_were_asked_these_count(store, tmp_path):
    more = [*their_pope(), foreign.pope(6, "yes", "no"), foreign.pope(7, "no", "yes")]
    foreign.write(tmp_path / "out", {"pope": more})
    said = bring(store.root, tmp_path / "out")
    assert "6 of its 8 questions count" in said.stdout and "POPE: 100.0, 6 questions" in said.stdout


def test_of_fewer_questions_than_rows_here_were_asked_it_says_so(store, tmp_path):
    foreign.write(tmp_path / "out", {"pope": their_pope(numbers=range(4))})
    said = bring(store.root, tmp_path / "out")
    assert "it has 4 of the 6 questions" in said.stdout
    assert "answered different questions" in run("compare", store.root, "theirs", "vanilla").stderr


def test_the_same_label_needs_replace_and_replaces(store, tmp_path):
    foreign.write(tmp_path / "out", {"pope": their_pope()})
    assert bring(store.root, tmp_path / "out").exit_code == 0
    again = bring(store.root, tmp_path / "out")
    assert again.exit_code == 2 and "imported already" in again.stderr and "--replace" in again.stderr
    foreign.write(tmp_path / "worse", {"pope": their_pope(MINE)})
    assert bring(store.root, tmp_path / "worse", "theirs", "--replace").exit_code == 0
    labels = [row.label for row in Store(store.root).study().rows]
    assert labels == ["vanilla", "theirs"]
    assert [line["answer"] for line in row_lines(store.root, "theirs")] == MINE


@pytest.mark.parametrize("label", ["vanilla", "fastv", "", "a\x1b[31mb", "x" * 81])
def test_a_label_that_would_be_taken_for_something_else_is_refused(store, tmp_path, label):
    foreign.write(tmp_path / "out", {"pope": their_pope()})
    said = bring(store.root, tmp_path / "out", label)
    assert said.exit_code == 2 and said.stderr.startswith("--label: ")
    assert not (store.root / "imports.json").exists()


def test_a_later_run_keeps_imported_rows_and_touches_none(store, tmp_path):
    foreign.write(tmp_path / "out", {"pope": their_pope()})
    bring(store.root, tmp_path / "out")
    whole = store.study()
    store.save_study(whole)  # as `judge` does with what it read
    assert [row.label for row in store.study().rows] == ["vanilla", "theirs"]
    stored = json.loads((store.root / "matrix.json").read_text())
    assert [row["method"] for row in stored["rows"]] == ["vanilla"] and len(stored["cells"]) == 1


def test_a_task_that_the_matrix_lacks_takes_no_row_its_average(store, tmp_path):
    pairs = [foreign.mme(n, f"OCR/{n // 2}.png", "Yes", "Yes") for n in range(4)]
    foreign.write(tmp_path / "out", {"pope": their_pope(), "mme": pairs})
    said = bring(store.root, tmp_path / "out")
    assert "it is no task of the matrix, so it is kept but not shown" in said.stdout
    assert store.study().tasks == ("pope",)


MMBENCH = {"index": 7, "question": "?", "answer": "A", "category": "c", "A": "red", "B": "blue", "C": "nan", "D": "nan"}
TASKS = {
    "gqa": [foreign.logged(n, "yes", "yes", exact_match=float(n % 2)) for n in range(4)],
    "textvqa_val": [foreign.logged(n, "answer", "4", exact_match=0.3, submission={"question_id": n}) for n in range(4)],
    "vizwiz_vqa_val": [
        foreign.logged(n, "answer", "4", exact_match=1.0, submission={"image": f"{n}.jpg"}) for n in range(4)
    ],
    "scienceqa_img": [
        foreign.logged(n, "B", said, exact_match=n % 2) for n, said in enumerate(["B.", "The answer is B.", "A", "B"])
    ],
    "mmbench_en_dev": [
        foreign.logged(n, "A", said, gpt_eval_score=MMBENCH | {"index": 7 + n, "prediction": said})
        for n, said in enumerate(["A", "B", "A. red", "banana"])
    ],
    "mme": [foreign.mme(n, f"OCR/{n // 2}.png", "Yes", "Yes" if n else "No") for n in range(4)],
}  # fmt: skip
SCORES = {"gqa": 50, "textvqa": 30, "vizwiz": 100, "sqa": 75, "mmbench": 50, "mme": 100 * 3 / 4 + 100 / 2}


def test_answers_that_only_lmms_eval_takes_are_read_again_and_the_difference_is_told(tmp_path):
    lines = [foreign.logged(0, "dog", "dog!", exact_match=1.0), foreign.logged(1, "dog", "dog", exact_match=1.0)]
    pairs = [foreign.mme(0, "a.png", "Yes", "Yes"), foreign.mme(1, "a.png", "No", "No")]
    pairs[0] = foreign.logged(0, "Yes", "Y", mme_perception_score=pairs[0]["mme_perception_score"])
    thought = foreign.logged(2, "Yes", "Yes", mme_cognition_score={"question_id": "b", "category": "c", "score": 1.0})
    other = foreign.logged(3, "No", "no", mme_cognition_score={"question_id": "b", "category": "c", "score": 1.0})
    reported = {"gqa": {"exact_match,none": 1.0}, "mme": {"mme_perception_score,none": 200.0}}
    foreign.write(tmp_path / "out", {"gqa": lines, "mme": [*pairs, thought, other]}, reported)
    said = bring(tmp_path / "new", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert "by its own scores it has 1, by the rules of rows here 0.5" in said.output
    assert "by its own scores it has 200, by the rules of rows here 50" in said.output
    read = Store(tmp_path / "new")
    states = dict(zip((cell.task for cell in read.study().cells), read.states(read.study().cells), strict=True))
    metrics = states["mme"].result.metrics
    assert (metrics["mme_cognition_score,none"], metrics["mme_total_score,none"]) == (200, 250)


@pytest.mark.parametrize("task", ["vqav2", "vizwiz"])
def test_ten_annotators_are_asked_again_where_they_are_at_hand(task):
    given = ["two"] * 10
    known = {"answers": [{"answer": one} for one in given] if task == "vqav2" else given}
    logged = {"exact_match": 1.0, "target": "answer"}
    assert rescore(task, logged, "two", known) == 0  # uploaded as "2", and compared with what stands there
    assert rescore(task, logged, "two", {}) == rescore(task, logged, "two", known, "lmms_eval") == 1
    assert rescore(task, logged | {"exact_match": 0.3}, "cat", {"answers": ["cat"] * 10}) == 0.3  # never raised


def test_each_task_is_scored_as_rows_here_are(tmp_path):
    foreign.write(
        tmp_path / "out", TASKS, {"scienceqa_img": {"exact_match,none": 0.5}, "gqa": {"exact_match,none": 0.5}}
    )
    said = bring(tmp_path / "new", tmp_path / "out")
    assert said.exit_code == 0, said.output
    found = {}
    read = Store(tmp_path / "new")
    for one, state in zip(read.study().cells, read.states(read.study().cells), strict=True):
        assert state.result is not None
        found[one.task] = BENCHMARKS[one.task].shown(state.result.metrics[BENCHMARKS[one.task].metric])
    assert found == pytest.approx(SCORES)
    assert "reports 0.5 for exact_match,none, but the samples give 0.75" not in said.stdout
    assert (
        "its results report 0.5 for exact_match,none, but the samples give 0.75 with this package's scorer"
        in said.stdout
    )


def test_answers_that_nobody_judged_wait_for_the_judge(tmp_path):
    entry = {"question_id": "v1_0", "question": "?", "gt_answer": "red", "capabilities": "rec", "pred_answer": "red"}
    foreign.write(tmp_path / "out", {"mmvet": [foreign.logged(0, "red", "red", gpt_eval_score=entry)]})
    assert bring(tmp_path / "new", tmp_path / "out").exit_code == 0
    assert "waiting" in run("status", tmp_path / "new").stdout
    assert run("judge", tmp_path / "new", "--exact").exit_code == 0
    assert "100.0" in run("table", tmp_path / "new").stdout


def test_scores_of_another_judge_say_so(tmp_path):
    entry = {
        "question_id": "v1_0",
        "question": "?",
        "gt_answer": "red",
        "capabilities": "rec,ocr",
        "pred_answer": "red",
    }
    lines = [
        foreign.logged(n, "red", "red", gpt_eval_score=entry | {"score": n / 2, "eval_model": "m"}) for n in (0, 1)
    ]
    foreign.write(tmp_path / "out", {"mmvet": lines})
    said = bring(tmp_path / "new", tmp_path / "out")
    assert "its scores are those of its own judge, m" in said.stdout
    assert "judged by m (imported)" in run("table", tmp_path / "new").stdout
    assert "done     mmvet · theirs: 25.0" in run("status", tmp_path / "new").stdout


# -- what is not whole, or contradicts itself -------------------------------------------------------------------------


def broken(folder, kind):
    """A folder with one thing wrong."""
    lines = their_pope()
    if kind == "two runs":
        foreign.write(folder, {"pope": lines})
        return foreign.write(folder, {"pope": lines}, date="20261126_130000")
    if kind == "two models":
        foreign.write(folder, {"pope": lines})
        return foreign.write(folder, {"gqa": TASKS["gqa"]}, date="20261126_130000", model_name="owner/third")
    if kind == "same benchmark":
        return foreign.write(folder, {"pope": lines, "fp_pope": lines})
    if kind == "missing samples":
        return foreign.write(folder, {"pope": lines}, **{"n-samples": {"pope": {"original": 9, "effective": 9}}})
    if kind == "duplicates":
        return foreign.write(folder, {"pope": [*lines, lines[0]]})
    if kind == "other scale":
        return foreign.write(folder, {"gqa": [foreign.logged(0, "a", "a", exact_match=100.0)]})
    if kind == "no number":
        return foreign.write(folder, {"gqa": [foreign.logged(0, "a", "a", exact_match="N/A")]})
    if kind == "not a number":
        return foreign.write(folder, {"gqa": [foreign.logged(0, "a", "a", exact_match=math.nan)]})
    if kind == "two answers":
        return foreign.write(folder, {"pope": [foreign.logged(0, "yes", ["yes", "no"], pope_accuracy={})]})
    if kind == "no metric":
        return foreign.write(folder, {"gqa": [foreign.logged(0, "a", "a")]})
    if kind == "contradiction":
        return foreign.write(folder, {"gqa": TASKS["gqa"]}, {"gqa": {"exact_match,none": 0.9}})
    if kind == "unknown tasks":
        return foreign.write(folder, {"ai2d": [foreign.logged(0, "a", "a")]})
    if kind == "no doc_id":
        return foreign.write(folder, {"gqa": [{"target": "a"}]})
    file = foreign.write(folder, {"pope": lines})
    samples = file.with_name("20261126_120000_samples_pope.jsonl")
    if kind == "torn line":
        samples.write_text(samples.read_text()[:-20])
    elif kind == "not UTF-8":
        samples.write_bytes(b"\xff\xfe\n")
    elif kind == "no results":
        file.unlink()
    elif kind == "no samples":
        samples.unlink()
    elif kind == "results are a list":
        file.write_text("[]")
    elif kind == "results are torn":
        file.write_text("{")
    else:
        assert kind == "empty samples"
        samples.write_text("")
    return file


@pytest.mark.parametrize(
    "kind, words",
    [
        (
            "two runs",
            "holds several runs of pope (20261126_120000_samples_pope.jsonl, 20261126_130000_samples_pope.jsonl)",
        ),
        ("two models", "holds results of several models, 'owner/other'"),
        ("same benchmark", "pope, fp_pope are the same benchmark"),
        ("missing samples", "holds 6 samples, but 9 questions were asked"),
        ("duplicates", "samples_pope.jsonl:7: doc_id 0 is there twice"),
        ("other scale", "samples_gqa.jsonl:1: exact_match: got 100.0, which is of another scale"),
        ("no number", "exact_match: got 'N/A'; expected a number from 0 to 1"),
        ("not a number", "exact_match: got nan; expected a number from 0 to 1"),
        ("two answers", "filtered_resps: got ['yes', 'no']; expected one text"),
        ("no metric", "exact_match: got None; expected a number"),
        (
            "contradiction",
            "its results report 0.9 for exact_match,none, but the samples give 0.5; they are not the samples",
        ),
        ("unknown tasks", "ai2d is no task of one of the ten benchmarks"),
        ("no doc_id", "samples_gqa.jsonl:1: doc_id: got None"),
        ("torn line", "samples_pope.jsonl:6: not JSON"),
        ("not UTF-8", "samples_pope.jsonl: cannot be read"),
        ("no results", "but no *_results.json, so the run did not end"),
        ("no samples", "lmms-eval writes it with --log_samples"),
        ("results are a list", "holds no results of lmms-eval"),
        ("results are torn", "not readable as JSON"),
        ("empty samples", "holds no samples"),
    ],
)
def test_what_is_not_one_whole_run_is_refused_in_a_line_and_nothing_is_written(tmp_path, kind, words):
    broken(tmp_path / "out", kind)
    said = bring(tmp_path / "new", tmp_path / "out")
    assert said.exit_code == 2 and words in said.stderr, said.output
    assert said.stderr.count("\n") == 1 and not list((tmp_path / "new").glob("*"))


def test_of_several_runs_in_a_folder_one_can_be_named(tmp_path):
    file = broken(tmp_path / "out", "two runs")
    assert bring(tmp_path / "new", file).exit_code == 0


def test_keys_in_a_foreign_models_arguments_are_not_kept(tmp_path):
    config = {
        "model": "openai",
        "model_args": "model_version=x,api_key=sk-abcdefghijklmnopqrstuvwx0123456789,base_url=u",
    }
    foreign.write(tmp_path / "out", {"gqa": TASKS["gqa"]}, config=config)
    assert bring(tmp_path / "new", tmp_path / "out").exit_code == 0
    kept = (tmp_path / "new" / "imports.json").read_text()
    assert "sk-abc" not in kept and "base_url=u" in kept


def test_damaged_imports_are_named_with_how_to_go_on(store):
    (store.root / "imports.json").write_text('{"imports": [{"label": 3}]}')
    said = run("status", store.root)
    assert "imports.json: imports.0.label is 3" in said.stderr and "import its rows again" in said.stderr
    assert said.exit_code == 0 and "1 done" in said.stdout  # what was run is shown all the same


def test_separators_and_halves_of_pairs_in_answers_are_kept_apart_from_lines(tmp_path):
    odd = foreign.logged(0, "a", "one\u2028two\u0085three", exact_match=1.0)
    file = foreign.write(tmp_path / "out", {"gqa": [odd, foreign.logged(1, "b", "half", exact_match=0.0)]})
    samples = file.with_name("20261126_120000_samples_gqa.jsonl")
    samples.write_text(samples.read_text().replace('"half"', '"half \\ud800"'))
    assert bring(tmp_path / "new", tmp_path / "out").exit_code == 0
    answers = [line["answer"] for line in row_lines(tmp_path / "new", "theirs")]
    assert answers == ["one\u2028two\u0085three", "half ?"]
