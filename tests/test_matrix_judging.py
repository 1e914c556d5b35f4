"""Cells that wait for the judge: their state, who may score them, and what the leaderboard says. Written by hand."""

from __future__ import annotations

import json

import pytest
from judge_server import JudgeServer as Server
from judge_server import fails, knows

from finepruner_lmms.judge.client import JudgeError
from finepruner_lmms.judge.settings import JudgeServer
from finepruner_lmms.matrix.judging import assign, assigned, judge_cells
from finepruner_lmms.matrix.leaderboard import leaderboard
from finepruner_lmms.matrix.paired import differences
from finepruner_lmms.matrix.progress import display_for
from finepruner_lmms.matrix.store import Store, StoreError, begin_attempt, write_answered
from finepruner_lmms.matrix.table import render

ROWS = [
    {"method": name, "budget": budget, "parameters": {}, "given": {}} for name, budget in (("vanilla", None), ("a", 64))
]
CELLS = [
    {"id": f"id{row}", "folder": f"mmvet-{row}", "task": "mmvet", "row": row, "label": f"mmvet · {row}"}
    for row in (0, 1)
]
SAID = (["red", "two", "7", "x"], ["red", "2", "7", "blue"])


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "run")
    for cell, said in zip(CELLS, SAID, strict=True):
        lines = []
        for number, answer in enumerate(said):
            entry = {"question_id": f"v1_{number}", "question": "?", "gt_answer": ["red", "2<OR>two", "8", "x"][number]}
            entry |= {"capabilities": ["rec", "rec,math", "ocr", "know"][number], "pred_answer": answer}
            lines.append({"doc_id": number, "image": str(number), "target": "", "answer": answer, "score": entry})
        folder = store.cell_dir(cell)
        begin_attempt(folder, "1")
        about = {"id": cell["id"], "spec": {"task": "mmvet"}, "answered": 4, "expected": 4, "seconds": 1.0}
        write_answered(folder, about, lines)
    return store


def record(judge) -> dict:
    about = {"name": "r", "model": "demo", "num_layers": 32, "num_visual_tokens": 576, "tasks": ["mmvet"]}
    return assign(about | {"rows": ROWS, "cells": CELLS}, judge)


def names(store: Store, judge) -> list[str]:
    return [state.name for state in store.states(record(judge)["cells"])]


def score(store: Store, judge) -> dict:
    from rich.console import Console

    current = record(judge)
    store.save_matrix(current)
    with display_for(Console(quiet=True), 2, 0) as display:
        judge_cells(store, current, judge, display)
    return current


def test_answers_wait_until_they_are_judged(store):
    assert names(store, "later") == names(store, "exact") == ["waiting", "waiting"]
    store.save_matrix(record("later"))
    text = render(leaderboard(store), "text")
    assert text.count("waiting") == 4 and "questions" not in text  # two cells, and the note
    cells = record("exact")["cells"]
    assert [state.reason for state in store.states(cells)] == ["4 questions answered, waiting for the judge"] * 2
    score(store, "exact")
    assert names(store, "exact") == names(store, "later") == ["done", "done"]  # `later` takes any judge's scores
    board = leaderboard(store)
    assert [line.scores["mmvet"].shown for line in board.lines] == [75, 50]
    assert board.judges == {"mmvet": ("exact",)} and "MM-Vet (exact)" in render(board, "markdown")
    result = store.states(cells)[0].result
    assert result["metrics"] == {"gpt_eval_score,none": 75, "rec": 100, "ocr": 0, "know": 100, "math": 100}


def test_another_judge_judges_anew_and_equal_answers_once(store):
    score(store, "exact")
    with Server(knows) as server:
        judge = JudgeServer(url=server.url, model="judge-1", retries=0)
        assert names(store, judge) == ["waiting", "waiting"]
        assert (
            "waiting for the judge 'judge-1'; 'exact' judged before" in store.states(record(judge)["cells"])[0].reason
        )
        assert assigned(score(store, judge)) == judge
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


def test_rows_of_different_judges_are_not_compared(store):
    current = score(store, "exact")
    assert differences(store, current, 0, 1)[0].value == 25
    file = store.cell_dir(CELLS[1]) / "result.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"judge": {"name": "judge-1", "models": ["judge-1"]}}))
    with pytest.raises(StoreError, match="were judged by 'exact' and 'judge-1'"):
        differences(store, record("later"), 0, 1)
    store.save_matrix(record("later"))
    assert "scores of different judges are not comparable" in render(leaderboard(store), "text")


def test_answers_that_were_changed_do_not_wait(store):
    file = store.cell_dir(CELLS[0]) / "answers.jsonl"
    file.write_text(file.read_text() + "\n")
    assert names(store, "later") == ["missing", "waiting"]
