"""The leaderboard, from results written by hand."""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from studies import cell, finish, lines_of, method, study

from finepruner_lmms.matrix.progress import score_text
from finepruner_lmms.matrix.report.board import Line
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.plots import draw, figure
from finepruner_lmms.matrix.report.tables import FORMATS, render
from finepruner_lmms.matrix.store import Store

ROWS = [
    method("vanilla"),
    method("random", 64, seed=0),
    method("random", 64, seed=1),
    method("fastv", "25%", {"rows": "raw"}, layer=2),
    method("uniform", 64),
]
# shares of the maximum; the last row lacks a task
GQA, MME = (0.8, 0.4, 0.6, 0.72, 0.5), (0.9, 0.45, 0.45, 0.81, None)


@pytest.fixture
def store(tmp_path) -> Store:
    store, cells = Store(tmp_path), []
    for task, shares in (("gqa", GQA), ("mme", MME)):
        for number, share in enumerate(shares):
            cells.append(cell(f"{task}{number}", task, number, ROWS[number]))
            if share is None:
                continue
            finish(store, cells[-1], lines_of(task, share, *((50, 4) if task == "gqa" else (25,))))
    store.save_study(study(ROWS, cells, num_layers=8))
    return store


def table(store: Store, relative: str = "ratios", **options) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(leaderboard(store, **options), "csv", relative))))


def test_csv_has_the_columns_of_the_contract_and_full_precision(store):
    rows = table(store, merge_seeds=False)
    contract = ["method", "budget", "seed", "layer", "gqa", "mme", "average", "relative"]
    assert list(rows[0])[: len(contract)] == contract
    assert [row["method"] for row in rows] == ["vanilla", "fastv", "random", "random", "uniform"]
    vanilla, fastv, seed0, seed1, uniform = rows
    assert vanilla["budget"] == "576" and fastv["budget"] == "25%" and (seed0["seed"], seed1["seed"]) == ("0", "1")
    assert math.isclose(float(vanilla["gqa"]), 80) and math.isclose(float(vanilla["mme"]), 720)  # points, not a share
    assert math.isclose(float(vanilla["average"]), 85) and math.isclose(float(vanilla["relative"]), 100)
    assert math.isclose(float(fastv["relative"]), 90) and math.isclose(float(fastv["average"]), 76.5)
    assert math.isclose(float(seed0["relative"]), 50)
    # missing is missing, and so is what would be computed from it
    assert float(uniform["gqa"]) == 50 and uniform["mme"] == uniform["average"] == uniform["relative"] == ""


def test_relative_by_both_published_conventions(store):
    """Mean of ratios, and ratio of means, in which MME counts as points / 20 where it has all ten categories."""
    rows = {row["method"]: row for row in table(store, relative="means")}
    assert math.isclose(float(rows["vanilla"]["relative"]), 100)
    assert math.isclose(float(rows["fastv"]["relative"]), 100 * (72 + 81) / (80 + 90))
    assert math.isclose(float(rows["random (2 seeds)"]["relative"]), 100 * (0.425 + 0.525) / 2 / 0.85)
    assert rows["uniform"]["relative"] == ""
    assert "relative: average divided by vanilla's, ±" in render(leaderboard(store), "markdown", "means")
    assert "mean over tasks" in render(leaderboard(store), "text")


def test_seeds_become_one_row_with_their_spread(store):
    board = leaderboard(store)
    line = next(line for line in board.lines if line.method == "random")
    assert line.seeds == (0, 1) and math.isclose(line.scores["gqa"].shown, 50)
    assert math.isclose(line.average, statistics.fmean([42.5, 52.5])) and math.isclose(
        line.spread, statistics.stdev([42.5, 52.5])
    )
    assert math.isclose(line.relative, statistics.fmean([50, 62.5]))
    text = render(board, "text")
    assert "random (2 seeds)" in text and "spread by 7.07" in text


def test_errors_are_in_the_units_of_the_score(store):
    line = leaderboard(store).lines[0]
    gqa, mme = line.scores["gqa"], line.scores["mme"]
    assert gqa.shown_error == gqa.percent_error > 0 and math.isclose(mme.shown_error, 8 * mme.percent_error)
    assert math.isclose(line.average_error, math.hypot(gqa.percent_error, mme.percent_error) / 2)
    assert mme.shown_low < mme.shown < mme.shown_high and math.isclose(mme.shown_low, 8 * mme.low)
    assert (gqa.questions, gqa.images, mme.questions, mme.images) == (200, 50, 200, 100)


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_format_shows_missing_as_missing(store, form):
    text = render(leaderboard(store), form)
    uniform, *_ = [line for line in text.splitlines() if "uniform" in line]  # its scores come first
    assert {"text": "–", "markdown": "–", "latex": "--", "csv": ",,"}[form] in uniform
    assert text.endswith("\n")


def test_markdown_and_latex_are_well_formed(store):
    board = leaderboard(store)
    scores = render(board, "markdown").partition("differences")[0]
    lines = [line for line in scores.splitlines() if line.startswith("|")]
    headings = [line for line in lines if line.startswith("| **")]
    assert len(lines) == 2 + 4 + len(headings) and len({line.count("|") for line in lines}) == 1
    assert len(headings) == 3 and "| **144 visual tokens (25%)** |" in headings[1]
    latex = render(board, "latex")
    assert r"\toprule" in latex and r"25\%" in latex and r"$\pm$" in latex and "±" not in latex


@pytest.fixture
def boundary(store) -> Store:
    """fastv is always right about GQA."""
    study = store.study()
    (fastv,) = [c for c in study.cells if c.task == "gqa" and c.method.method == "fastv"]
    finish(store, fastv, lines_of("gqa", 1.0))
    return store


def test_an_error_that_was_not_measured_is_a_dash_never_zero(boundary):
    board = leaderboard(boundary)
    fastv = next(line for line in board.lines if line.method == "fastv")
    assert fastv.scores["gqa"].shown_error is None and fastv.average == pytest.approx(90.5)
    assert fastv.average_error > fastv.scores["mme"].percent_error / 2  # as unsure as Wilson's interval at 100 %
    low, high = fastv.scores["gqa"].shown_low, fastv.scores["gqa"].shown_high
    assert low < 95 and high == 100  # Wilson's, of as many images
    for form in ("text", "markdown", "latex"):
        assert f"[{low:.0f}, 100]" in render(board, form)
    (row,) = [row for row in table(boundary) if row["method"] == "fastv"]
    assert row["gqa_error"] == "" and float(row["gqa_low"]) == low
    (state,) = boundary.states([c for c in boundary.study().cells if c.id == "gqa3"])
    assert score_text(state.result) == "100.0 ± – % of the maximum, 200 questions, 1.0 s"


def test_where_all_intervals_are_known_nothing_is_said_about_it(store):
    assert "no interval is known" not in render(leaderboard(store), "text")


def test_the_mean_over_seeds_has_the_error_of_images_and_of_seeds(store):
    line = mean_line(store)
    assert line.label == "random 64" and line.rows == (1, 2)
    assert line.scores["gqa"].percent_error > np.std([40, 60], ddof=1) / 2**0.5


def mean_line(store: Store) -> Line:
    return next(line for line in leaderboard(store).lines if line.seeds)


def test_the_picture_shows_average_against_budget_with_errors(store):
    axes = figure(leaderboard(store)).axes[0]
    assert axes.get_xlabel() == "visual tokens entering a decoder layer, on average"
    assert axes.get_ylabel() == "mean score, % of the maximum"
    assert axes.get_title(loc="left") == "study: 2 tasks, 95 % intervals"
    lines = {line.method: line for line in leaderboard(store).lines}
    spots = {}
    for bars in axes.containers:
        data, _, (sticks,) = bars.lines
        (x,), (y,) = data.get_xdata(), data.get_ydata()
        spots[round(float(y), 6)] = (x, np.sort(sticks.get_segments()[0][:, 1]))
    assert set(spots) == {76.5, 47.5}  # uniform lacks a task
    for name, value in (("fastv", 76.5), ("random", 47.5)):
        across, ends = spots[value]
        assert across == pytest.approx(lines[name].tokens, rel=0.1)  # beside each other
        assert ends == pytest.approx([lines[name].average_low, lines[name].average_high])
    low, high = axes.get_ylim()
    assert low > 47.5 and high > 85  # zoomed on what is not random
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"fastv layer=2", "random (2 seeds)", "vanilla, all 576 tokens"} and axes.get_legend() is None


@pytest.mark.parametrize("suffix, magic", [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_picture_is_written_in_the_form_that_its_name_says(store, tmp_path, suffix, magic):
    draw(leaderboard(store), tmp_path / f"board{suffix}")
    assert (tmp_path / f"board{suffix}").read_bytes().startswith(magic)


def test_a_picture_of_nothing_is_an_error(store, tmp_path):
    for file in store.root.glob("cells/*/result.json"):
        file.unlink()
    with pytest.raises(ValueError, match="no row has all of its tasks done"):
        draw(leaderboard(store), tmp_path / "board.png")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        finished = leaderboard(store)
        draw(type(finished)(**{**vars(finished), "lines": (_whole(finished.lines[0]),)}), tmp_path / "board.gif")


def _whole(line):
    return type(line)(**{**vars(line), "average": 1.0, "average_error": 0.1})


def test_an_odd_number_of_mme_questions_is_said_to_lose_one(store):
    board = leaderboard(store)
    assert "partner" not in render(board, "text")
    assert "MME: the question whose partner was not asked" in render(replace(board, questions={"mme": 49}), "text")
