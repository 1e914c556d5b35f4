"""Cells that wait for the judge: their state, who may score them, and what the leaderboard says. Written by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from click.testing import Result
from judge_server import JudgeServer as Server
from judge_server import fails, knows, says
from rich.console import Console
from studies import cell, method, rewrite, study
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.judge.client import JudgeError
from finepruner_lmms.judge.settings import JudgeServer
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.judged import assign
from finepruner_lmms.matrix.judging import judge_cells, keep_scores
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.progress import display_for
from finepruner_lmms.matrix.report.compare import Comparison, compare_rows
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.named_rows import NamedRow
from finepruner_lmms.matrix.report.tables import render
from finepruner_lmms.matrix.results import keep_answers, read_lines, write_answered, write_result
from finepruner_lmms.matrix.store import Store, StoreError

METRIC = "gpt_eval_score,none"
ROWS = [method("vanilla"), method("a", 64)]
CELLS = [cell(f"id{row}", "mmvet", row, ROWS[row]) for row in (0, 1)]
SAID = (["red", "two", "7", "x"], ["red", "2", "7", "blue"])


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "run")
    for one, said in zip(CELLS, SAID, strict=True):
        lines = []
        for number, answer in enumerate(said):
            entry = {"question_id": f"v1_{number}", "question": "?", "gt_answer": ["red", "2<OR>two", "8", "x"][number]}
            entry |= {"capabilities": ["rec", "rec,math", "ocr", "know"][number], "pred_answer": answer}
            lines.append({"doc_id": number, "image": str(number), "target": "", "answer": answer, "score": entry})
        folder = store.cell_dir(one)
        begin_attempt(folder, "1")
        about = {"id": one.id, "spec": {"task": "mmvet"}, "answered": 4, "expected": 4, "seconds": 1.0}
        write_answered(folder, about, lines)
    return store


def planned(judge) -> Study:
    return assign(study(ROWS, CELLS), judge)


def names(store: Store, judge) -> list[str]:
    return [state.name for state in store.states(planned(judge).cells)]


def score(store: Store, judge) -> Study:
    current = planned(judge)
    store.save_study(current)
    with display_for(Console(quiet=True), 2, 0) as display:
        judge_cells(store, current, judge, display)
    return current


def test_answers_wait_until_they_are_judged(store):
    assert names(store, "later") == names(store, "exact") == ["waiting", "waiting"]
    store.save_study(planned("later"))
    text = render(leaderboard(store), "text")
    assert text.count("waiting") == 4 and "questions" not in text  # two cells, and the note
    cells = planned("exact").cells
    assert [state.reason for state in store.states(cells)] == ["4 questions answered, waiting for the judge"] * 2
    score(store, "exact")
    assert names(store, "exact") == names(store, "later") == ["done", "done"]  # `later` takes any judge's scores
    board = leaderboard(store)
    assert [line.scores["mmvet"].shown for line in board.lines] == [75, 50]
    assert board.judges == {"mmvet": ("exact",)} and "MM-Vet (exact)" in render(board, "markdown")
    result = store.states(cells)[0].result
    assert result.metrics == {"gpt_eval_score,none": 75, "rec": 100, "ocr": 0, "know": 100, "math": 100}


def test_another_judge_judges_anew_and_equal_answers_once(store):
    score(store, "exact")
    with Server(knows) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0)
        assert names(store, judge) == ["waiting", "waiting"]
        assert "waiting for the judge 'judge-1'; 'exact' judged before" in store.states(planned(judge).cells)[0].reason
        assert score(store, judge).judge == judge
        assert len(server.requests) == 6  # of eight answers, two pairs are the same
        assert names(store, judge) == ["done", "done"] and names(store, "exact") == ["waiting", "waiting"]
        score(store, "exact")
        score(store, judge)
        assert len(server.requests) == 6
    assert leaderboard(store).judges == {"mmvet": ("judge-1-served",)}


def test_a_judge_that_dies_leaves_no_cell_half_judged(store):
    with Server(lambda number, prompt: knows(number, prompt) if number <= 5 else fails(503)) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0, workers=1)
        with pytest.raises(JudgeError, match="503"):
            score(store, judge)
    assert names(store, judge) == ["done", "waiting"]
    assert len((store.root / "judgements.jsonl").read_text().splitlines()) == 5
    assert "waiting" in render(leaderboard(store), "latex")


def compared(store: Store, study: Study) -> Comparison:
    """Its first row and its second."""
    return compare_rows(NamedRow("one", store, study, (0,)), NamedRow("other", store, study, (1,)))


def test_rows_of_different_judges_are_not_compared(store):
    current = score(store, "exact")
    assert compared(store, current).tasks[0].difference.value == 25
    rewrite(store.cell_dir(CELLS[1]), judge={"name": "judge-1", "models": ["judge-1"]})
    with pytest.raises(StoreError, match="were judged by 'exact' and 'judge-1'"):
        compared(store, planned("later"))
    store.save_study(planned("later"))
    assert "scores of different judges are not comparable" in render(leaderboard(store), "text")


def test_answers_that_were_changed_do_not_wait(store):
    file = store.cell_dir(CELLS[0]) / "answers.jsonl"
    file.write_text(file.read_text() + "\n")
    state = store.states(planned("later").cells)[0]
    assert state.name == "failed" and state.damaged and state.reason.startswith("answers.jsonl was changed")
    assert names(store, "later") == ["failed", "waiting"]


# -- a judge that fails replaces nothing ------------------------------------------------------------------------------


def valid(store: Store) -> dict[str, bytes]:
    """What a table is made of."""
    files = [
        store.root / "matrix.json",
        *store.root.glob("cells/*/result.json"),
        *store.root.glob("cells/*/samples.jsonl"),
    ]
    return {str(file.relative_to(store.root)): file.read_bytes() for file in files}


def command(store: Store, *options: str) -> Result:
    return CliRunner().invoke(app, ["judge", str(store.root), *options])


def test_a_failed_judge_command_leaves_the_scores_of_before_and_a_whole_one_replaces_them(store):
    score(store, "exact")
    before, table = valid(store), render(leaderboard(store), "text")
    with Server(lambda number, prompt: knows(number, prompt) if number <= 5 else fails(400, "no")) as server:
        failed = command(store, "--url", server.url, "--model", "judge-1")
    assert failed.exit_code == 1 and "could not be judged" in failed.stderr
    assert valid(store) == before and render(leaderboard(store), "text") == table
    assert store.study().judge == "exact" and names(store, "exact") == ["done", "done"]
    with Server(knows) as server:
        done = command(store, "--url", server.url, "--model", "judge-1")
        assert (
            done.exit_code == 0 and len(server.requests) == 1
        )  # the five judgements of before are not asked for again
    assert store.study().judge.model == "judge-1" and valid(store).keys() == before.keys()
    assert all(valid(store)[name] != content for name, content in before.items() if name.endswith("t.json"))
    assert valid(store)["matrix.json"] != before["matrix.json"]
    assert leaderboard(store).judges == {"mmvet": ("judge-1-served",)}


def test_a_run_under_another_judge_shows_the_scores_of_before_until_it_has_its_own(store):
    score(store, "exact")
    with Server(lambda *_: fails(503)) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0)
        asked = planned(judge)
        store.save_study(keep_scores(store, asked))
        with pytest.raises(JudgeError, match="503"), display_for(Console(quiet=True), 2, 0) as display:
            judge_cells(store, asked, judge, display)
    assert [line.scores["mmvet"].shown for line in leaderboard(store).lines] == [75, 50]
    assert leaderboard(store).judges == {"mmvet": ("exact",)}
    assert store.study().judge == judge  # so that `judge` without options goes on with it
    assert names(store, judge) == ["waiting", "waiting"]


@pytest.mark.parametrize("value", [7, -0.1, 0.55, float("nan"), "0.5", True, None])
def test_a_judgement_outside_the_rubric_is_refused_and_replaces_nothing(store, value):
    with Server(knows) as server:
        options = ["--url", server.url, "--model", "judge-1"]
        assert command(store, *options).exit_code == 2  # nothing was run here
        store.save_study(planned("later"))
        assert command(store, *options).exit_code == 0
        score(store, "exact")
        before, file = valid(store), store.root / "judgements.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[2]["value"] = value
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        refused = command(store, *options)
        assert refused.exit_code == 2 and f"judgements.jsonl:3: the value {value!r} is not what" in refused.stderr
        assert "delete the line to have it judged again" in refused.stderr and valid(store) == before
        file.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not lines[2]))
        assert command(store, *options).exit_code == 0 and len(server.requests) == 7


@pytest.mark.slow
def test_ctrl_c_ends_a_judge_that_waits_for_answers_and_replaces_nothing(store):
    score(store, "exact")
    before = valid(store)
    with Server(lambda number, prompt: knows(number, prompt), delay=60) as server:
        command = [sys.executable, "-m", "finepruner_lmms.cli", "judge", str(store.root), "--url", server.url]
        run = subprocess.Popen([*command, "--model", "judge-1"], stderr=subprocess.PIPE, text=True)
        until(lambda: len(server.requests) == 4)
        started = time.monotonic()
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=30)[1]
    assert time.monotonic() - started < 2 and run.returncode == 130
    assert "stopped; what is judged is kept; the same command goes on from here" in said and "Traceback" not in said
    assert valid(store) == before and names(store, "exact") == ["done", "done"]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- MMBench: scored without a judge, and by one where no letter can be read ------------------------------------------

TWO = [cell(f"b{row}", "mmbench", row, ROWS[row]) for row in (0, 1)]
OPTIONS = ("a big dog", "a small cat", "a grey bird", "a red fish")
# what both rows say to the orders of three questions, whose right options are A, B, C, D in turn; by hand:
SAID_OF_FOUR = (
    ["A", "B", "C", "D", "A", "feline", "C", "D.", "A", "B", "C", "fishy"],
    ["A", "B", "C", "D", "A", "feline", "C", "D.", "A", "avian", "C", "canine"],
)
MEANS = {"feline": "B", "fishy": "E", "avian": "C", "canine": "A"}


def reads(_number: int, prompt: str):
    return says(MEANS[prompt.splitlines()[-2].removeprefix("Answer: ")])


@pytest.fixture
def bench(tmp_path) -> Store:
    """Both rows done with the static scorer: of three questions only the first is right in every order."""
    store = Store(tmp_path / "bench")
    for one, said in zip(TWO, SAID_OF_FOUR, strict=True):
        lines = []
        for number, answer in enumerate(said):
            entry = {"index": number // 4 + number % 4 * 1_000_000, "question": "?", "answer": "ABCD"[number % 4]}
            entry |= {"category": "c", "prediction": answer} | dict(zip("ABCD", OPTIONS, strict=True))
            lines.append({"doc_id": number, "image": str(number // 4), "target": "", "answer": answer, "score": entry})
        about = {"id": one.id, "spec": {"task": "mmbench"}, "answered": 12, "expected": 12, "seconds": 1.0}
        about |= {"metrics": {METRIC: 100 / 3, "other,none": 1.0}, "percent": 100 / 3, "standard_error": 5.0}
        begin_attempt(store.cell_dir(one), "1")
        write_result(store.cell_dir(one), about, lines)
    return store


def bench_study(judge) -> Study:
    return assign(study(ROWS, TWO), judge)


def judge_bench(store: Store, judge) -> list[float]:
    """Judge what waits; the scores of both rows."""
    current = bench_study(judge)
    store.save_study(current)
    with display_for(Console(quiet=True), 2, 0) as display:
        judge_cells(store, current, judge, display)
    return [line.scores["mmbench"].shown for line in leaderboard(store).lines]


def bench_names(store: Store, judge) -> list[str]:
    return [state.name for state in store.states(bench_study(judge).cells)]


def test_mmbench_is_judged_only_by_a_judge_that_is_told_to(bench):
    plain = JudgeServer(url="http://127.0.0.1:1", model="judge-1")
    for judge in (None, "later", "exact", plain):
        assert not any(one.judged for one in bench_study(judge).cells)
        assert judge_bench(bench, judge) == [pytest.approx(100 / 3)] * 2  # nobody is asked: the address has no server
    told = plain.model_copy(update={"mmbench": True})
    assert [(one.judged, one.judge) for one in bench_study(told).cells] == [(True, "judge-1")] * 2
    served = study(ROWS, [TWO[0].model_copy(update={"submission": True})])
    assert not assign(served, told).cells[0].judged
    assert bench_names(bench, told) == ["waiting", "waiting"]
    assert store_reason(bench, told) == "12 questions answered, waiting for the judge"


def store_reason(store: Store, judge) -> str:
    return store.states(bench_study(judge).cells)[0].reason


def test_answers_scored_without_a_judge_are_judged_and_back_without_a_new_answer(bench):
    samples = [bench.cell_dir(one) / "samples.jsonl" for one in TWO]
    results = [json.loads((bench.cell_dir(one) / "result.json").read_text()) for one in TWO]
    before = [file.read_bytes() for file in samples]
    with Server(reads) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0, mmbench=True)
        # row 0: feline is B, right; fishy is said to be none. Row 1: avian and canine are not what was right
        assert judge_bench(bench, judge) == [pytest.approx(200 / 3)] * 2
        asked = sorted(request["body"]["messages"][0]["content"].splitlines()[-2] for request in server.requests)
        assert asked == ["Answer: avian", "Answer: canine", "Answer: feline", "Answer: fishy"]  # feline once for both
        state = bench.states(bench_study(judge).cells)[1]
        assert state.name == "done" and state.result.judge.model_dump() | {"rubric": ""} == {
            "name": "judge-1",
            "host": server.url[7:],
            "models": ["judge-1-served"],
            "asked": 3,
            "rubric": "",
        }
        assert state.result.metrics == {METRIC: pytest.approx(200 / 3), "unreadable,none": 0}
        letters = [line["score"].get("letter") for line in read_lines(samples[0])]
        assert letters == [None] * 5 + ["B"] + [None] * 5 + ["E"]
        text = render(leaderboard(bench), "text")
        assert "MMBench: 5 answers without a letter read by judge-1-served." in text and "Questions: MMBench 12" in text
        # without a judge again: the very results that were there
        assert bench_names(bench, None) == ["waiting", "waiting"]
        assert store_reason(bench, None).endswith("waiting to be scored without a judge; 'judge-1' judged before")
        assert judge_bench(bench, None) == [pytest.approx(100 / 3)] * 2
        assert [file.read_bytes() for file in samples] == before
        assert [json.loads((bench.cell_dir(one) / "result.json").read_text()) for one in TWO] == results
        assert "read by" not in render(leaderboard(bench), "text")
        # and judged again: all is known
        assert judge_bench(bench, judge) == [pytest.approx(200 / 3)] * 2 and len(server.requests) == 4


def test_a_judge_of_mmbench_that_dies_leaves_the_scores_of_before(bench):
    with Server(lambda number, prompt: reads(number, prompt) if number <= 3 else fails(503)) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0, workers=1, mmbench=True)
        with pytest.raises(JudgeError, match="503"):
            judge_bench(bench, judge)
    assert bench_names(bench, judge) == ["waiting", "waiting"] and bench_names(bench, None) == ["done", "done"]
    with Server(reads) as server:
        judge = judge.model_copy(update={"url": f"{server.url}/v1/chat/completions"})
        assert judge_bench(bench, judge) == [pytest.approx(200 / 3)] * 2
        assert len(server.requests) == 1


def test_rows_judged_and_not_judged_are_not_compared(bench):
    with Server(reads) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0, mmbench=True)
        judge_bench(bench, judge)
    half = bench_study(judge)
    half = half.model_copy(update={"cells": (half.cells[0], bench_study(None).cells[1])})
    with pytest.raises(StoreError, match="no finished task in common"):
        compared(bench, half)  # the second waits for its score without a judge
    keep, current = bench.cell_dir(TWO[1]), bench_study(None).cells[1]
    about, lines = keep_answers(keep, current)
    write_result(keep, about, lines)
    with pytest.raises(StoreError, match="rows of mmbench were judged by 'judge-1' and nobody"):
        compared(bench, half)


def test_samples_that_were_changed_are_not_judged(bench):
    judge = JudgeServer(url="http://127.0.0.1:1", model="judge-1", mmbench=True)
    file = bench.cell_dir(TWO[0]) / "samples.jsonl"
    file.write_text(file.read_text() + "\n")
    assert bench_names(bench, judge) == ["failed", "waiting"]


def test_the_command_judge_is_told_of_mmbench(bench, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bench.save_study(bench_study(None))
    with Server(reads) as server:
        options = ["judge", str(bench.root), "--url", server.url, "--model", "judge-1"]
        done = CliRunner().invoke(app, [*options, "--mmbench"])
        assert done.exit_code == 0 and done.stdout.count("66.7") == 2
        again = CliRunner().invoke(app, ["judge", str(bench.root)])  # the run knows its judge now
        assert again.stdout == done.stdout and len(server.requests) == 4
    bench.save_study(study(ROWS, [cell("g", "gqa")]))
    wrong = CliRunner().invoke(app, [*options, "--mmbench"])
    assert wrong.exit_code == 2 and "--mmbench: the run has neither of mmbench, mmbench_cn" in wrong.stderr
