"""Paired comparisons and cost tables, from results written by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from studies import cell, method, study
from typer.testing import CliRunner

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.cli import app
from finepruner_lmms.engine.cost import DecoderSizes, PrefillCost, cache_bytes, published_macs
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.report.compare import Comparison, compare_rows
from finepruner_lmms.matrix.report.comparison_text import comparison_text
from finepruner_lmms.matrix.report.costs import render_costs
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.named_rows import find_row
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


def compared(store: Store, first: str, second: str, margin: float | None = None) -> Comparison:
    return compare_rows(find_row(store, first), find_row(store, second), margin)


def command(*words: object):
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_differences_are_paired(store):
    (found,) = compared(store, "fastv 64", "vanilla").tasks
    one, other = answers(1), answers(0)
    assert found.difference.value == pytest.approx(100 * (one.mean() - other.mean()))
    assert (found.first, found.second) == pytest.approx((100 * one.mean(), 100 * other.mean()))
    per_image = 100 * (one.mean(1) - other.mean(1))
    floor = 2 * (100 / one.size) ** 2
    assert found.difference.error == pytest.approx((per_image.var(ddof=1) / IMAGES + floor) ** 0.5)
    unpaired = 100 * (one.mean(1).var(ddof=1) / IMAGES + other.mean(1).var(ddof=1) / IMAGES) ** 0.5
    assert found.difference.error < unpaired / 2  # what pairing is for
    assert found.difference.low < found.difference.value < found.difference.high < 0
    assert (found.difference.won, found.difference.lost) == (0, (other & ~one).sum())
    assert (found.difference.questions, found.difference.images) == (one.size, IMAGES)
    assert found.difference.p < 0.001 and found.p_adjusted == found.difference.p  # one task, one chance


def test_the_leaderboard_has_the_same_differences_to_its_baseline(store):
    board = leaderboard(store)
    (fastv,) = [line for line in board.lines if line.label == "fastv 64"]
    (found,) = compared(store, "fastv 64", "vanilla").tasks
    assert fastv.deltas["gqa"].baseline == "vanilla" and fastv.deltas["gqa"].difference == found.difference
    assert fastv.deltas["gqa"].mark == fastv.deltas["average"].mark == "worse"
    assert fastv.relative_error > 0 and not next(line for line in board.lines if line.method == "vanilla").deltas


def test_rows_without_a_difference_have_an_interval_for_what_was_not_seen(store):
    (same,) = compared(store, "vanilla", "vanilla").tasks
    assert (same.difference.value, same.difference.p) == (0, 1)
    assert same.difference.low == -same.difference.high < 0
    text = comparison_text(compared(store, "vanilla", "vanilla"))
    assert "Fewer than 10 questions that one of the rows answered better, which say little: GQA (0)" in text


def test_a_margin_is_shown_or_not_or_the_study_is_too_small(store):
    def says(first: str, second: str, margin: float) -> str | None:
        return compared(store, first, second, margin).tasks[0].no_worse

    (found,) = compared(store, "fastv 64", "vanilla").tasks
    assert says("fastv 64", "vanilla", -found.difference.low + 0.1) == "shown"
    assert says("fastv 64", "vanilla", -found.difference.high - 0.1) == "not shown"
    assert says("fastv 64", "vanilla", -found.difference.value) == "too small to say"
    assert says("vanilla", "fastv 64", 0.1) == "shown"  # better is no worse
    done = command(store.root, "fastv 64", "vanilla", "--margin", 20)
    assert "A no worse by 20" in done.output and "above -20 percentage points" in done.output
    assert command(store.root, "fastv 64", "vanilla", "--margin", 0).exit_code == 2


def test_what_could_have_been_found_is_2_8_standard_errors(store):
    (found,) = compared(store, "fastv 64", "vanilla").tasks
    assert found.detectable == pytest.approx(2.8016 * found.difference.error, rel=1e-4)


def test_rows_are_named_as_people_see_them(store):
    labels = ("vanilla", "fastv 64", "fastv  64 layer=3")
    assert [find_row(store, label).places for label in labels] == [(0,), (1,), (2,)]
    with pytest.raises(StoreError, match=r"row: got 'fastv 65' \(did you mean 'fastv 64'\?\); rows: vanilla, fastv 64"):
        find_row(store, "fastv 65")
    with pytest.raises(StoreError, match="no finished task in common"):
        compared(store, "vanilla", "fastv 64 layer=3")


def test_the_command_compares(store):
    done = command(store.root, "fastv 64", "vanilla")
    assert done.exit_code == 0 and "| GQA " in done.output and "difference" in done.output
    wrong = command(store.root, "fastv 64", "vanila")
    assert wrong.exit_code == 2 and "did you mean 'vanilla'" in wrong.output
    assert "expected a folder and two rows, DIR1:ROW DIR2:ROW" in command(store.root).output


def test_json_has_the_names_of_the_contract(store):
    found = json.loads(command(store.root, "fastv 64", "vanilla", "--format", "json").stdout)
    names = {"difference", "low", "high", "p", "p_adjusted", "won", "lost", "questions", "images"}
    assert set(found["tasks"]) == {"gqa"} and names <= set(found["tasks"]["gqa"]) and names <= set(found["average"])
    assert found["average"]["difference"] == pytest.approx(found["tasks"]["gqa"]["difference"])
    assert (found["first"], found["second"]) == ("fastv 64", "vanilla")


def test_what_labels_hold_moves_no_terminal(tmp_path):
    hostile = method("\x1b[31mred\u202e|", 64)
    rows, cells = [method("vanilla"), hostile], []
    store = Store(tmp_path / "hostile")
    for row, of in enumerate(rows):
        cells.append(cell(f"gqa{row}", "gqa", row, of))
        finish(store, cells[-1], answers(row))
    store.save_study(study(rows, cells))
    for words in (("vanilla", hostile.label), ("--baseline", "vanilla")):
        for form in ("text", "json"):
            done = command(store.root, *words, "--format", form)
            assert done.exit_code == 0, done.output
            assert not set("\x1b\u202e") & set(done.output) and "u202e" in done.output


# -- several tasks, seeds and studies ---------------------------------------------------------------------------------

SEEDED = [method("vanilla"), *(method("random", 64, seed=seed) for seed in (0, 1)), method("fastv", 64)]


def finish(store: Store, one: Cell, right: np.ndarray) -> None:
    """Write a finished cell of GQA, or of MME where images have two questions."""
    lines = []
    for image, hits in enumerate(right):
        for place, hit in enumerate(hits):
            score: object = float(hit)
            if one.task == "mme":
                score = {"question_id": f"i{image}", "category": "OCR" if image % 2 else "color", "score": float(hit)}
            said, number = "ab"[place % 2], right.shape[1] * image + place
            lines.append({"doc_id": number, "image": f"i{image}", "target": said, "answer": said, "score": score})
    benchmark = BENCHMARKS[one.task]
    metric = benchmark.metric.partition(",")[0]
    logged = [{**line, metric: line["score"]} for line in lines]
    percent, images = benchmark.percent(logged), {line["doc_id"]: line["image"] for line in lines}
    result = {"id": one.id, "metrics": {benchmark.metric: benchmark.value(logged)}, "percent": percent, "seconds": 1}
    result |= {"standard_error": benchmark.standard_error(logged, images), "answered": right.size}
    begin_attempt(store.cell_dir(one), "1")
    write_result(store.cell_dir(one), result | {"expected": right.size, "spec": {"task": one.task}}, lines)


def seeded(root: Path, rates: tuple[float, ...] = (0.9, 0.4, 0.5, 0.85), seed: int = 1) -> Store:
    store, cells, rng = Store(root), [], np.random.default_rng(seed)
    for task, each in (("gqa", 1), ("mme", 2)):
        shared = rng.random((60, each))  # a question that is hard for one is so for all
        for row, rate in enumerate(rates):
            cells.append(cell(f"{task}{row}", task, row, SEEDED[row]))
            finish(store, cells[-1], 0.8 * shared + 0.2 * rng.random((60, each)) < rate)
    store.save_study(study(SEEDED, cells, name=root.name))
    return store


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Store:
    return seeded(tmp_path_factory.mktemp("seeded") / "first")


def test_the_seeds_of_a_row_are_compared_as_one(many):
    found = compared(many, "random 64", "fastv 64")
    assert found.seeds == (2, 1)
    alone = [compared(many, f"random 64 seed={seed}", "fastv 64") for seed in (0, 1)]
    for task in (0, 1):
        values = [one.tasks[task].difference.value for one in alone]
        assert found.tasks[task].difference.value == pytest.approx(np.mean(values))
    text = comparison_text(found)
    assert "and seeds (2: few, so that their spread is hardly known)" in text


def test_mme_is_in_points_and_so_is_its_margin(many):
    found = compared(many, "random 64", "fastv 64", margin=1)
    gqa, mme = found.tasks
    assert mme.per_percent == 4  # two categories of 200 points
    assert found.average.difference.value == pytest.approx((gqa.difference.value + mme.difference.value / 4) / 2)
    assert "MME in points" in comparison_text(found) and "(MME: 4)" in comparison_text(found)


def test_p_values_are_adjusted_over_the_tasks(many):
    found = compared(many, "vanilla", "fastv 64").tasks
    p = [one.difference.p for one in found]
    least = min(p)
    assert min(one.p_adjusted for one in found) == pytest.approx(min(1, 2 * least))
    assert max(one.p_adjusted for one in found) == pytest.approx(max(min(1, 2 * least), max(p)))


def test_all_rows_are_compared_with_a_baseline(many):
    done = command(many.root, "--baseline", "fastv", "--format", "json")
    rows = {row["row"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {"random 64", "fastv 64"}  # seeds as one; vanilla is what fastv is compared with
    assert (rows["random 64"]["baseline"], rows["fastv 64"]["baseline"]) == ("fastv 64", "vanilla")
    alone = compared(many, "random 64", "fastv 64")
    assert rows["random 64"]["tasks"]["mme"]["difference"] == pytest.approx(alone.tasks[1].difference.value)
    assert rows["random 64"]["average"]["p_adjusted"] >= rows["random 64"]["average"]["p"]
    text = command(many.root, "--baseline", "fastv").output
    assert "| random 64 | " in text.replace("  ", "") and "↓" in text
    assert command(many.root, "--baseline", "fastw").exit_code == 2
    wrong = command(many.root, "random 64", "--baseline", "fastv")
    assert wrong.exit_code == 2 and "no folder of results" in wrong.output


def test_rows_of_two_studies_are_compared(many, tmp_path):
    other = seeded(tmp_path / "second:half", rates=(0.9, 0.4, 0.5, 0.6))
    done = command(f"{many.root}:fastv 64", f"{other.root}:fastv 64", "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["tasks"]["gqa"]["difference"] > 0 and found["tasks"]["gqa"]["won"] > 0
    wrong = command("nowhere:fastv 64", f"{other.root}:fastv 64")
    assert wrong.exit_code == 2 and "expected DIR:ROW" in wrong.output


def test_rows_of_two_studies_have_one_baseline(many, tmp_path):
    other = seeded(tmp_path / "second", rates=(0.9, 0.4, 0.5, 0.6))
    done = command(many.root, other.root, "--baseline", "first:fastv 64", "--format", "json")
    assert done.exit_code == 0, done.output
    rows = {(row["study"], row["row"]): row for row in json.loads(done.stdout)["rows"]}
    alone = command(f"{other.root}:fastv 64", f"{many.root}:fastv 64", "--format", "json")
    expected = json.loads(alone.stdout)["tasks"]["gqa"]
    found = rows["second", "fastv 64"]["tasks"]["gqa"]
    assert (found["difference"], found["won"]) == (expected["difference"], expected["won"])
    assert {row["baseline"] for key, row in rows.items() if key[0] == "second"} == {"first:fastv 64"}
    assert "second:fastv 64" in command(many.root, other.root, "--baseline", "first:fastv 64").output


def test_rows_that_were_asked_other_questions_are_not_compared(many, tmp_path):
    other = Store(tmp_path / "less")
    cells = [cell("gqa0", "gqa", 0, SEEDED[0])]
    finish(other, cells[0], np.ones((10, 1), dtype=bool))
    other.save_study(study(SEEDED[:1], cells))
    wrong = command(f"{many.root}:vanilla", f"{other.root}:vanilla")
    assert wrong.exit_code == 2 and "answered different questions of gqa" in wrong.output


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
