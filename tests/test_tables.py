"""The leaderboard in every format: golden files, groups, marks, several studies, and LaTeX that compiles.

`python tests/test_tables.py` writes the golden files anew; look at the difference before it is kept.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from boards import ROWS, write_board
from typer.testing import CliRunner

from finepruner_lmms.commands.app import app
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.costs import render_costs
from finepruner_lmms.matrix.report.exact import dataframe
from finepruner_lmms.matrix.report.frame import Frame, Stacked, Strong
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.names import row_names
from finepruner_lmms.matrix.report.numbers import Digits, decimals, interval, number
from finepruner_lmms.matrix.report.tables import FORMATS, render
from finepruner_lmms.matrix.store import Store

GOLDEN = Path(__file__).parent / "golden" / "tables"
SUFFIXES = {"text": "txt", "markdown": "md", "csv": "csv", "latex": "tex"}
NASTY = "a_b & 50% of {x} \\ ~ ^ # $y$ [z] <script> | `c` *d*"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return write_board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def board(store) -> Leaderboard:
    return leaderboard(store)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("costs", [False, True])
@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_format_is_as_its_golden_file(board, form, costs):
    text = render_costs(board, form) if costs else render(board, form)
    golden = (GOLDEN / f"{'costs' if costs else 'scores'}.{SUFFIXES[form]}").read_text(encoding="utf-8")
    if form != "csv":
        assert text == golden
        return
    found, known = rows_of(text), rows_of(golden)  # at full precision, where the last digit may be the machine's
    assert [list(row) for row in found] == [list(row) for row in known]
    for row, other in zip(found, known, strict=True):
        for name, value in row.items():
            assert value == other[name] or math.isclose(float(value), float(other[name]), rel_tol=1e-9), name


def test_a_parameter_that_is_left_to_the_method_is_no_word(board):
    line = replace(board.lines[-1], parameters={"relevance": None})
    assert row_names(board, line)["relevance"] == row_names(board, line, exact=True)["relevance"] == ""


def test_rows_stand_under_their_budget_and_the_best_of_it_are_marked(board):
    text = render(board, "text")
    headings = ["all 576 visual tokens", "128 visual tokens (22%)", "64 visual tokens (11%)"]
    scores = text.partition("study: differences")[0].splitlines()
    assert [line for line in scores if line in headings] == headings
    tied = [line for line in board.lines if line.tokens == 128 and "gqa" in line.best]
    assert {line.method for line in tied} == {"fastv", "divprune"}  # the paired test cannot tell them apart
    (random,) = [line for line in scores if line.startswith("random")]
    assert "*" not in random and "**85.4** [" in render(board, "markdown")
    assert r"\textbf{85.4}" in render(board, "latex")


def test_csv_has_every_error_interval_and_count(board):
    rows = rows_of(render(board, "csv"))
    contract = ["method", "budget", "relevance", "gqa", "pope", "mme", "average", "relative"]
    assert list(rows[0])[: len(contract)] == contract
    divprune = next(row for row in rows if (row["method"], row["budget"]) == ("divprune", "64"))
    line = next(line for line in board.lines if (line.method, line.budget) == ("divprune", 64))
    delta = line.deltas["mme"]
    for name, value in {
        "gqa_low": line.scores["gqa"].shown_low, "mme_error": line.scores["mme"].shown_error, "pope_images": 48,
        "mme_delta_high": delta.difference.high, "mme_p_adjusted": delta.p_adjusted, "mme_won": delta.difference.won,
        "average_high": line.average_high, "relative_error": line.relative_error,
        "first_token_p50": 0.0264, "gqa_questions": 240,
    }.items():  # fmt: skip
        assert math.isclose(float(divprune[name]), value), name
    assert divprune["baseline"] == "fastv 64" and divprune["best"] == "gqa mme average"
    cdpruner = rows[-1]
    assert cdpruner["mme"] == cdpruner["mme_low"] == cdpruner["average"] == cdpruner["average_delta"] == ""


def test_a_data_frame_has_numbers_and_nan(store, board):
    import finepruner_lmms as fp

    frame = fp.leaderboard(store.root).to_dataframe()
    assert frame.equals(dataframe(board))
    shown = fp.leaderboard(str(store.root), baseline="vanilla")
    assert "minus vanilla" in str(shown) and shown._repr_markdown_().startswith("**study")
    assert frame["gqa"].dtype == frame["mme"].dtype == frame["average_low"].dtype == float
    assert (
        frame["mme"].isna().sum() == 1 and frame.set_index(["method", "budget"]).loc[("fastv", 64), "gqa_images"] == 60
    )


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_baseline_can_be_chosen_in_every_format(store, form):
    text = render(leaderboard(store, baseline="divprune 128"), form)
    assert "divprune 128" in text
    with pytest.raises(FieldError, match="did you mean"):
        leaderboard(store, baseline="divprun 128")


def test_several_studies_stand_in_one_table(store, tmp_path):
    other = write_board(tmp_path, [ROWS[0], ROWS[4], ROWS[6]], "other", shift=-0.1)
    board = leaderboard(store, other)
    text = render(board, "text")
    assert {line.study for line in board.lines} == {"study", "other"}
    lines = [line for line in text.splitlines() if "divprune" in line and line.startswith(("study", "other"))]
    assert {line.split()[0] for line in lines} == {"study", "other"}
    rows = rows_of(render(board, "csv"))
    assert {row["study"] for row in rows} == {"study", "other"} and next(iter(rows[0])) == "method"
    run = CliRunner().invoke(app, ["table", str(store.root), str(other.root), "--baseline", "vanilla"])
    assert run.exit_code == 0 and "other" in run.stdout and "minus vanilla" in run.stdout


def test_figures_beside_scores_are_shown_where_there_are_any(board):
    assert "further figures" not in render(board, "text")
    first = board.lines[0]
    beside = replace(first.scores["mme"], beside={"cognition": 321.4, "total": 646.4})
    other = replace(board, lines=(replace(first, scores={**first.scores, "mme": beside}), *board.lines[1:]))
    for form in ("text", "markdown", "latex"):
        text = render(other, form)
        assert "MME cognition" in text and "321.4" in text and "646.4" in text
    assert rows_of(render(other, "csv"))[0]["mme_total"] == "646.4"


def test_few_images_and_few_differences_are_said(board):
    text = render(board, "text")
    assert "MME: fewer than 30 images" in text and "GQA: fewer" not in text
    assert "+0.0? [" in text and "?: fewer than 10 answers differ" in text
    quiet = replace(board, lines=tuple(replace(line, deltas={}) for line in board.lines))
    assert "answers differ" not in render(quiet, "text") and "differences" not in render(quiet, "text")


def test_an_arrow_beside_an_interval_that_holds_0_is_explained(board):
    said = "An arrow beside an interval that holds 0"
    assert said not in render(board, "text")  # no arrow of this board stands beside one
    place, column, delta = next(
        (place, column, delta)
        for place, line in enumerate(board.lines)
        for column, delta in line.deltas.items()
        if delta.mark
    )
    wide = replace(delta, difference=replace(delta.difference, low=-30.0, high=30.0))
    line = replace(board.lines[place], deltas={**board.lines[place].deltas, column: wide})
    lines = (*board.lines[:place], line, *board.lines[place + 1 :])
    assert said in render(replace(board, lines=lines), "text")


def test_what_is_not_as_a_method_is_called_is_said_below_the_table(board):
    assert "pooled" not in render(board, "text")
    lines = [
        replace(line, method=name)
        for line, name in zip(board.lines[:2], ("downsample", "vispruner+coreprune"), strict=True)
    ]
    for form in ("text", "markdown", "latex"):
        text = " ".join(render(replace(board, lines=(*lines, *board.lines[2:])), form).split())
        assert "downsample: the tower sees the picture as it is, and its grid is pooled before the projector." in text
        assert "coreprune: the published first stage, inside the vision tower, is not in it." in text
    elsewhere = replace(board, lines=(replace(lines[0], imported=True), *board.lines[1:]))
    assert "pooled" not in render(elsewhere, "text")


def test_numbers_have_two_digits_of_their_error():
    assert [decimals([error]) for error in (12.0, 1.2, 0.34, 0.034, None, 0.0)] == [1, 1, 2, 3, 1, 1]
    assert decimals([None, 1.2, 0.34]) == 2  # the same in all rows of a column
    assert Digits.of([(1.2, 74.1, 78.8), (0.6, 75.0, 77.4), (None, None, None)]) == Digits(2, 1)
    assert Digits.of([(30.0, 600.0, 720.0)]) == Digits(1, 0)  # ends are not surer than the error
    assert number(-0.04, 1) == "0.0" and number(-0.04, 1, sign=True) == "+0.0"
    assert interval(None, 1.0, 1) == "[–]" and interval(-1.0, 2.0, 1, sign=True) == "[-1.0, +2.0]"


def test_wide_frames_go_on_below_with_the_names_of_their_rows():
    frame = Frame(("row", *map(str, range(9))), [["fastv", *["x" * 30] * 9]], words=1)
    parts = frame.text("title", width=100).split("\n\n")
    assert len(parts) == 5 and parts[0].startswith("title\nrow") and all("fastv" in part for part in parts)
    assert max(map(len, frame.text("title", width=100).splitlines())) <= 100
    assert len(frame.text("title", width=10).split("\n\n")) == 9  # a column by itself is never cut


def test_long_frames_are_split_between_groups_where_they_can_be():
    frame = Frame(("a",), [[number] for number in range(10)], {0: "x", 4: "y", 7: "z"})
    assert [len(part.rows) for part in frame.split(7)] == [7, 3]
    assert [dict(part.groups) for part in frame.split(7)] == [{0: "x", 4: "y"}, {0: "z"}]
    assert [len(part.rows) for part in frame.split(3)] == [3, 1, 3, 3] and len(frame.split(10)) == 1
    assert [row for part in frame.split(2) for row in part.rows] == frame.rows


def documents(board: Leaderboard) -> dict[str, str]:
    nasty = Frame.of(
        [{NASTY: NASTY, "[x]": Stacked(Strong("1.0"), "[-1.0, +2.0]")}, {NASTY: "[y]", "[x]": Stacked("-2.0↓", "[–]")}],
        {0: NASTY, 1: "*"},
    )
    return {"scores": render(board, "latex"), "costs": render_costs(board, "latex"), "nasty": nasty.latex()}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="TeX is not installed")
def test_latex_compiles_without_a_complaint(board, tmp_path):
    """`apt-get install texlive-latex-base texlive-latex-recommended`, then this test."""
    lines = [replace(line, method=NASTY) if line.method == "random" else line for line in board.lines]
    texts = documents(replace(board, name=NASTY, lines=tuple(lines)))
    body = "\n".join(texts.values())
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n\\begin{document}\n"
    (tmp_path / "paper.tex").write_text(f"{head}{body}\n\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def test_latex_has_no_character_that_a_plain_document_lacks(board):
    assert render(board, "latex").isascii() and render_costs(board, "latex").isascii()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = leaderboard(write_board(Path(folder)))
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for one, suffix in SUFFIXES.items():
            (GOLDEN / f"scores.{suffix}").write_text(render(made, one), encoding="utf-8")
            (GOLDEN / f"costs.{suffix}").write_text(render_costs(made, one), encoding="utf-8")
    sys.stdout.write(f"{GOLDEN}\n")
