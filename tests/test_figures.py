"""Figures for papers: what each shows is in the CSV beside it, in three formats, the same bytes every time."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from boards import ROWS, write_board
from typer.testing import CliRunner

from finepruner_lmms.commands.app import app
from finepruner_lmms.matrix.report.board import AVERAGE, Leaderboard
from finepruner_lmms.matrix.report.figures import figures, pareto, write_figures
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.store import Store

NAMES = ["drop", "task_gqa", "task_pope", "task_mme", "average_flops", "average_latency"]
MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def board(store) -> Leaderboard:
    return leaderboard(store, baseline="vanilla", test=False)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("figures")
    run = CliRunner().invoke(app, ["report", str(store.root), "--figures", str(target)])
    assert run.exit_code == 0 and len(run.stdout.splitlines()) == 4 * len(NAMES), run.output
    return target


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_each_figure_comes_in_three_formats_with_its_data(folder):
    assert sorted(file.stem for file in folder.glob("*.csv")) == sorted(NAMES)
    for name in NAMES:
        for suffix, magic in MAGIC.items():
            assert (folder / f"{name}{suffix}").read_bytes().startswith(magic)


def test_the_data_are_those_of_the_leaderboard(folder, board):
    by_name = {line.label: line for line in board.lines}
    for row in rows(folder / "drop.csv"):
        found = by_name[row["row"]].deltas[AVERAGE].difference
        assert (float(row["drop"]), float(row["low"]), float(row["high"])) == (found.value, found.low, found.high)
    gqa = {row["row"]: row for row in rows(folder / "task_gqa.csv")}
    assert float(gqa["divprune 64"]["high"]) == by_name["divprune 64"].scores["gqa"].shown_high and "vanilla" in gqa
    flops = {row["row"]: row for row in rows(folder / "average_flops.csv")}
    assert {name for name, row in flops.items() if row["front"] == "yes"} == {"vanilla", "fastv 128", "divprune 64"}
    assert "cdpruner 64 relevance=embedding" not in flops  # it has no average yet


def test_what_shows_no_token_has_no_place_on_the_scale_of_budgets(board):
    line = next(line for line in board.lines if line.method == "fastv")
    blind = replace(line, method="blind", budget=0, tokens=0.0)
    (axes,) = next(figures(replace(board, lines=[*board.lines, blind]))).figure.axes
    assert min(axes.get_xticks()) > 0
    assert {text.get_text() for text in axes.texts} == {"fastv", "divprune", "random (2 seeds)"}


def test_the_axis_is_zoomed_on_what_is_not_random_and_curves_are_labelled_where_they_end(board):
    drawn = next(figures(board))
    (axes,) = drawn.figure.axes
    low, high = axes.get_ylim()
    random = next(line for line in board.lines if line.method == "random").deltas[AVERAGE].difference
    assert random.value < low < high and axes.get_legend() is None
    assert {text.get_text() for text in axes.texts} == {"fastv", "divprune", "random (2 seeds)"}
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert all(after - before > 0.02 for before, after in pairwise(heights))  # none on another
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert len(set(colors.values())) == 3


def test_the_same_study_gives_the_same_bytes(board, tmp_path):
    for name in ("one", "other"):
        write_figures(replace(board, tasks=()), tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name


def test_the_front_is_what_no_other_row_beats_in_both():
    points = [(1.0, 50.0), (2.0, 60.0), (2.0, 55.0), (3.0, 60.0), (4.0, 70.0)]
    assert pareto(points) == {0, 1, 4}


def test_names_that_others_wrote_are_text_and_no_formula(board):
    from matplotlib import cbook
    from matplotlib.text import Text

    nasty = "$x^2$ \\frac{a}{b} " + "$" * 40
    lines = [replace(line, method=nasty) if line.method == "divprune" else line for line in board.lines]
    for drawn in figures(replace(board, name=nasty, lines=tuple(lines), tasks=("gqa",))):
        drawn.figure.canvas.draw()
        texts = [text.get_text() for text in drawn.figure.findobj(Text)]
        assert not any(map(cbook.is_math_text, texts)) and any("frac" in text for text in texts)


def test_a_study_without_a_finished_row_has_no_figures(tmp_path):
    store = write_board(tmp_path / "board", [ROWS[0]])
    run = CliRunner().invoke(app, ["report", str(store.root), "--figures", str(tmp_path / "figures")])
    assert run.exit_code == 2 and "nothing to draw" in run.stderr
