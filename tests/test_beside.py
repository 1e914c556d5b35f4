"""What is told beside scores: figures of the benchmark that are not its score, and by whose rules it was scored."""

from __future__ import annotations

import pytest
from studies import cell, finish, method, study

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.tables import render
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.tallies import tally_of

ROWS = [method("vanilla"), method("random", 64, seed=0), method("random", 64, seed=1)]


def line(number: int, score, **more) -> dict:
    about = {"doc_id": number, "image": f"i{number}", "target": "", "answer": "", "score": score}
    return about | more


def mme(number: int, right: float, category: str) -> dict:
    entry = {"question_id": f"{category}{number // 2}", "category": category, "score": right}
    return line(number, entry | ({"part": "cognition"} if category == "code" else {}), image=entry["question_id"])


def mmbench(number: int, read: str | None) -> dict:
    entry = {"index": number, "question": "?", "answer": "A", "category": "c", "prediction": "", "read": read}
    return line(number, entry | {"A": "a", "B": "b", "C": None, "D": None})


def board_of(tmp_path, task: str, rows: list[list[dict]], **more):
    store, cells = Store(tmp_path), [cell(f"c{number}", task, number, row) for number, row in enumerate(ROWS)]
    for one, lines in zip(cells, rows, strict=True):
        benchmark = BENCHMARKS[task]
        metric = benchmark.metric.partition(",")[0]
        logged = [{**a_line, metric: a_line["score"]} for a_line in lines]
        metrics = {benchmark.metric: benchmark.value(logged)} | benchmark.beside_of(logged)
        finish(store, one, lines, metrics=metrics, **more)
    store.save_study(study(ROWS, cells))
    return store, cells


def test_cognition_and_the_total_of_mme_are_shown_beside_its_score_the_mean_over_seeds(tmp_path):
    def answers(right: int) -> list[dict]:
        """All eight right, but of those about code only so many."""
        return [mme(n, 1.0, "color") for n in range(4)] + [mme(4 + n, float(n < right), "code") for n in range(4)]

    store, _ = board_of(tmp_path, "mme", [answers(4), answers(2), answers(1)])
    board = leaderboard(store)
    # code: all right, 200; one pair of two, 50 + 50; one of four, 25
    assert [row.scores["mme"].beside for row in board.lines] == [
        {"cognition": 200, "total": 400},
        {"cognition": pytest.approx(62.5), "total": pytest.approx(262.5)},
    ]
    assert "MME cognition" in render(board, "text") and "MME total" in render(board, "markdown")
    assert [row.scores["mme"].shown for row in board.lines] == [200, 200]  # perception alone is the score
    assert board.lines[0].scores["mme"].questions == 4


def test_mme_without_cognition_has_nothing_to_tell(tmp_path):
    rows = [[mme(n, 1.0, "color") for n in range(4)]] * 3
    store, _ = board_of(tmp_path, "mme", rows)
    known = {"mme_perception_score,none": 200, "mme_total_score,none": 200}  # as lmms-eval aggregates it
    assert BENCHMARKS["mme"].shown_beside(known) == {}
    assert "cognition" not in render(leaderboard(store), "text")


def test_unreadable_rows_are_counted_and_shown(tmp_path):
    rows = [[mmbench(n, "A") for n in range(1, 5)], [mmbench(n, None if n < 3 else "A") for n in range(1, 5)]]
    store, _ = board_of(tmp_path, "mmbench", [*rows, rows[1]])
    board = leaderboard(store)
    assert [row.scores["mmbench"].beside for row in board.lines] == [{"unreadable rows": 0}, {"unreadable rows": 2}]
    assert "MMBench unreadable rows" in render(board, "text")


def test_scores_by_lmms_evals_rules_say_so_and_do_not_compare_with_others(tmp_path):
    rows = [[line(n, float(n % 2)) for n in range(4)]] * 3
    store, cells = board_of(tmp_path / "a", "gqa", rows, spec={"task": "gqa", "protocol": "lmms_eval"})
    text = render(leaderboard(store), "text")
    assert "GQA: scored by lmms-eval's rules (protocol: lmms_eval), not by those of published figures." in text
    plain, others = board_of(tmp_path / "b", "gqa", rows)
    assert "lmms-eval's rules" not in render(leaderboard(plain), "text")
    ours, theirs = (
        tally_of(kept, one, kept.states([one])[0].result) for kept, one in ((store, cells[0]), (plain, others[0]))
    )
    assert ours.asked != theirs.asked
    both = render(leaderboard(store, plain), "text")
    assert "GQA: rows by both rules, which do not compare." in both
