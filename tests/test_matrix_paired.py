"""Paired comparisons and cost tables, from results written by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from studies import cell, method, study
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.engine.cost import DecoderSizes, PrefillCost, cache_bytes, published_macs
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.report.compare import differences, find_row
from finepruner_lmms.matrix.report.costs import render_costs
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.tables import render_differences
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store, StoreError

ROWS = [
    method("vanilla"),
    method("fastv", 64, {"layer": 2}),
    method("fastv", 64, layer=3),
]
IMAGES, EACH = 50, 4
COST = {"questions": 200, "text_tokens": 55.0, "visual_tokens": 64.1, "final_visual_tokens": 30.0}
COST |= {"macs_2": 4.75e8, "macs_3": 5.45e8, "kv_bytes": 1463808.0}


def answers(row: int) -> np.ndarray:
    """Right or wrong, an image a line: row 1 misses what row 0 misses, and every second image's last question."""
    rng = np.random.default_rng(1)
    right = rng.random((IMAGES, EACH)) < 0.7
    if row == 1:
        right[::2, -1] = False
    return right


@pytest.fixture
def store(tmp_path) -> Store:
    store, cells = Store(tmp_path), []
    for number in range(3):
        cells.append(cell(f"gqa{number}", "gqa", number, ROWS[number]))
        if number == 2:
            continue
        right = answers(number)
        samples = [
            {"doc_id": EACH * image + place, "image": f"i{image}", "target": "a", "answer": "b", "score": float(hit)}
            for image, line in enumerate(right)
            for place, hit in enumerate(line)
        ]
        result = {"id": cells[-1].id, "metrics": {"exact_match,none": right.mean()}, "percent": 100 * right.mean()}
        result |= {"standard_error": 2.0, "answered": right.size, "expected": right.size, "seconds": 1}
        result |= {"spec": {"task": "gqa"}, "cost": COST if number else COST | {"macs_2": 4e9, "macs_3": 4.4e9}}
        begin_attempt(store.cell_dir(cells[-1]), "1")
        write_result(store.cell_dir(cells[-1]), result, samples)
    store.save_study(study(ROWS, cells))
    return store


def test_differences_are_paired(store):
    (compared,) = differences(store, store.study(), 1, 0)
    found = compared.difference
    one, other = answers(1), answers(0)
    assert found.value == pytest.approx(100 * (one.mean() - other.mean()))
    per_image = 100 * (one.mean(1) - other.mean(1))
    unseen = 2 * (100 / 200) ** 2
    assert found.error == pytest.approx((per_image.var(ddof=1) / IMAGES + unseen) ** 0.5)
    assert (found.won, found.lost) == (0, (other & ~one).sum()) and found.p < 0.001
    unpaired = 100 * (one.mean(1).var(ddof=1) / IMAGES + other.mean(1).var(ddof=1) / IMAGES) ** 0.5
    assert found.error < unpaired / 2  # what pairing is for
    assert found.low < found.value < found.high < 0


def test_rows_alike_differ_by_nothing_with_an_interval(store):
    (same,) = differences(store, store.study(), 0, 0)
    assert (same.difference.value, same.difference.p) == (0, 1) and same.difference.low < 0 < same.difference.high
    assert " +0.0 ± 0.7 |" in render_differences([same], "one", "other")


def test_the_leaderboard_has_the_same_differences_to_its_baseline(store):
    board = leaderboard(store)
    (fastv,) = [line for line in board.lines if line.label == "fastv 64"]
    (compared,) = differences(store, store.study(), 1, 0)
    assert fastv.deltas["gqa"].baseline == "vanilla" and fastv.deltas["gqa"].difference == compared.difference
    assert fastv.deltas["gqa"].mark == fastv.deltas["average"].mark == "worse"
    assert fastv.relative_error > 0 and not next(line for line in board.lines if line.method == "vanilla").deltas


def test_rows_are_named_as_people_see_them(store):
    record = store.study()
    assert [find_row(record, label) for label in ("vanilla", "fastv 64", "fastv  64 layer=3")] == [0, 1, 2]
    with pytest.raises(StoreError, match=r"row: got 'fastv 65' \(did you mean 'fastv 64'\?\); rows: vanilla, fastv 64"):
        find_row(record, "fastv 65")
    with pytest.raises(StoreError, match="no finished task in common"):
        differences(store, record, 0, 2)


def test_the_command_compares(store):
    done = CliRunner().invoke(app, ["compare", str(store.root), "fastv 64", "vanilla"])
    assert done.exit_code == 0 and "| GQA " in done.output and "difference" in done.output
    wrong = CliRunner().invoke(app, ["compare", str(store.root), "fastv 64", "vanila"])
    assert wrong.exit_code == 2 and "did you mean 'vanilla'" in wrong.output


def test_costs_are_shown_as_recorded(store):
    board = leaderboard(store)
    rows = list(csv.DictReader(io.StringIO(render_costs(board, "csv"))))
    assert float(rows[1]["visual_tokens"]) == 64.1 and float(rows[1]["macs_2"]) == 4.75e8
    assert rows[2]["visual_tokens"] == ""  # not run yet: missing, not 0
    text = render_costs(board, "text")
    assert "0.475 G (12 %)" in text and "1.40 MiB" in text and "64.1" in text and "–" in text
    assert "0.475 G (12 %)" in render_costs(board, "markdown") and r"\%" in render_costs(board, "latex")
    done = CliRunner().invoke(app, ["table", str(store.root), "--costs"])
    assert done.exit_code == 0 and "cost of prefill" in done.output


def test_the_cost_of_an_evaluation_is_the_mean_over_questions_with_an_image():
    sizes = DecoderSizes(hidden=8, feed_forward=16, query_width=8, key_value_width=8)
    lengths = {(10, (6, 6, 2)): 3, (20, (6, 6, 2)): 1, (30, (0, 0, 0)): 5}
    cost = PrefillCost.of(sizes, lengths)
    assert (cost.questions, cost.text_tokens, cost.final_visual_tokens) == (4, 12.5, 2)
    assert cost.visual_tokens == pytest.approx(14 / 3)
    short, long = [16, 16, 12], [26, 26, 22]
    assert cost.macs_3 == (3 * published_macs(sizes, short) + published_macs(sizes, long)) / 4
    assert cost.kv_bytes == (3 * cache_bytes(sizes, short) + cache_bytes(sizes, long)) / 4
    assert PrefillCost.of(sizes, {(30, (0, 0, 0)): 5}) is None
