"""Names with everything in them that some output acts on: of methods, parameters, models, judges, answers and errors.

Each command is run; what it prints and writes must show the names, and nothing of them may act.
"""

from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest
from pages import blocks
from studies import cell, method, study
from typer.testing import CliRunner

from finepruner_lmms import output
from finepruner_lmms.cli import app
from finepruner_lmms.doctor.check import Check
from finepruner_lmms.doctor.report import as_json, show
from finepruner_lmms.matrix.attempts import begin_attempt, write_error
from finepruner_lmms.matrix.judging import _table
from finepruner_lmms.matrix.progress import display_for
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.plots import figure
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store

HOSTILE = "=[red]x\x1b[2J\x9b1m\u202e<script>&lt;\\input{y}$_a$|`c`:smile:\r\nforged\u2028\x07%#~^"
ACTS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
IMAGES = 20


@pytest.fixture
def store(tmp_path) -> Store:
    rows = [method("vanilla"), method("fastv", 64), method(HOSTILE, 64, **{HOSTILE: HOSTILE}, head_strategy=HOSTILE)]
    rows += [method("finepruner", 64, head_strategy="sum"), method("=1+1", 64)]
    store, cells = Store(tmp_path / "run"), []
    for number, row in enumerate(rows):
        for task, metric in (("gqa", "exact_match,none"), ("mmvet", "gpt_eval_score,none")):
            cells.append(cell(f"{task}{number}", task, number, row, judged=task == "mmvet"))
            right = np.random.default_rng(number).random(IMAGES) < 0.7
            share = right.mean()
            samples = [
                {"doc_id": i, "image": f"i{i}", "target": HOSTILE, "answer": HOSTILE, "score": float(hit)}
                for i, hit in enumerate(right)
            ]
            if task == "mmvet":
                samples = [{**s, "score": {"question_id": s["doc_id"], "score": s["score"]}} for s in samples]
            result = {"id": cells[-1].id, "metrics": {metric: share if task == "gqa" else 100 * share}}
            result |= {"percent": 100 * share, "standard_error": 2.0, "answered": IMAGES, "expected": IMAGES}
            result |= {"seconds": 1, "spec": {"task": task}}
            result |= {"judge": {"name": HOSTILE, "asked": 1}} if task == "mmvet" else {}
            begin_attempt(store.cell_dir(cells[-1]), "1")
            write_result(store.cell_dir(cells[-1]), result, samples)
    failed = cell("failed", "pope", 0)
    begin_attempt(store.cell_dir(failed), "1")
    write_error(store.cell_dir(failed), HOSTILE, HOSTILE)
    named = {"model": HOSTILE, "name": HOSTILE, "tasks": ("gqa", "mmvet")}
    store.save_study(study(rows, [*cells, failed]).model_copy(update=named))
    lines = [
        {"task": "fp_gqa", "doc_id": doc, "layer": 2, "qualities": {HOSTILE: 0.5, "_b": 0.1}, "complexity": 0.1}
        | {"n_heads": 2, "share_diversity": 0.5, "branch": HOSTILE, "heads": [0, 1]}
        for doc in range(3)
    ]
    (store.cell_dir(cells[4]) / "selections-rank0.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return store


COMMANDS = [
    ["status"],
    ["table"],
    ["table", "--costs"],
    ["table", "--seeds"],
    ["table", "--format", "markdown"],
    ["table", "--format", "markdown", "--costs"],
    ["table", "--format", "csv"],
    ["table", "--format", "csv", "--costs"],
    ["table", "--format", "latex"],
    ["table", "--format", "latex", "--costs"],
    ["compare", "fastv 64", HOSTILE],
    ["export", "--format", "csv"],
    ["query", "SELECT * FROM cells"],
    ["query", "SELECT method, answer FROM samples LIMIT 9", "--format", "csv"],
    ["query", "SELECT * FROM samples LIMIT 9", "--format", "json"],
]


def printed(store: Store, command: str, *options: str) -> str:
    done = CliRunner().invoke(app, [command, str(store.root), *options])
    assert not isinstance(done.exception, Exception), done.exception
    assert not ACTS.search(done.output), ACTS.search(done.output)
    return done.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_that_a_command_prints_moves_a_terminal(store, command):
    said = printed(store, *command)
    for file in store.root.glob("export/**/*.csv"):
        cells = [value for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8"))) for value in row]
        assert len(cells) > 50 and not [value for value in cells if value.startswith(("=", "@", "+"))]
    assert "forged" not in [line.strip() for line in said.splitlines()]  # no line of its own
    assert "😄" not in said


def test_text_shows_names_as_they_stand(store):
    said = printed(store, "table")
    assert output.plain(HOSTILE) in said and "[red]" in said
    said = printed(store, "status")
    assert f"failed   pope · vanilla: {output.plain(f'{HOSTILE}: {HOSTILE}')}" in said


def test_markdown_tables_keep_their_columns(store):
    for options in ((), ("--costs",)):
        said = printed(store, "table", "--format", "markdown", *options)
        for part in re.split(r"^$", said, flags=re.MULTILINE):  # each table by itself
            rows = [line for line in part.splitlines() if line.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1
        own = re.sub(r"\[[-+\d., –]+\](?!\()", "", said).replace("**", "")  # intervals and what stands out
        assert "<script" in own and not re.search(r"(?<!\\)[<`*$]|(?<!\\)\[", own)
    table = _table([{"row": HOSTILE, "total": "1.0"}])
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1 and "\\<script" in table


def test_csv_starts_no_formula_and_numbers_stay_numbers(store):
    rows = list(csv.reader(io.StringIO(printed(store, "table", "--format", "csv"))))
    assert len(rows) == 6 and len({len(row) for row in rows}) == 1
    assert not [value for row in rows for value in row if value.startswith(("=", "+", "@", "\t", "\r"))]
    named = {row[0] for row in rows}
    assert "'=1+1" in named and f"'{output.plain(HOSTILE)}" in named
    assert all(float(row[rows[0].index("gqa")]) for row in rows[1:])


def test_latex_has_no_macro_but_its_own(store):
    for options in ((), ("--costs",)):
        said = printed(store, "table", "--format", "latex", *options)
        macros = set(re.findall(r"\\[A-Za-z]+", said))
        own = {"begin", "end", "toprule", "midrule", "bottomrule", "pm", "textbackslash", "textasciitilde"}
        own |= {"textasciicircum", "textless", "textgreater", "textbar", "textbf", "textit", "tiny", "footnotesize"}
        own |= {
            "caption",
            "centering",
            "multicolumn",
            "shortstack",
            "addlinespace",
            "usepackage",
            "resizebox",
            "smallskip",
        }
        own |= {"ifdim", "else", "fi", "width", "textwidth", "Delta", "uparrow", "downarrow"}
        assert macros <= {f"\\{name}" for name in own}
        assert re.sub(r"\\\$|\$(\\pm|\\Delta|\\(up|down)arrow|-)\$", "", said).count("$") == 0


class Tags(HTMLParser):
    """The tags of a page, and its scripts that a browser would run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.scripts: list[str] = []
        self._runs = False

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self._runs = tag == "script" and not attrs
        assert not any(
            name.startswith("on") or (name in ("src", "href") and not value.startswith(("#", "data:")))
            for name, value in attrs
        )

    def handle_data(self, data):
        if self._runs:
            self.scripts.append(data)
            self._runs = False


def test_a_report_holds_no_tag_but_its_own(store):
    printed(store, "report")
    page = (store.root / "report.html").read_text(encoding="utf-8")
    assert not ACTS.search(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    tags = Tags()
    tags.feed(page)
    known = "html head meta title style script noscript body main header footer nav section h1 h2 p a div button code"
    assert tags.found <= set(known.split())
    digests = {b64encode(sha256(script.encode()).digest()).decode() for script in tags.scripts}
    assert digests == set(re.findall(r"'sha256-([^']*)'", page)) and len(digests) > 5  # no other script runs
    assert output.html(HOSTILE) in page  # the name of the study
    assert HOSTILE in [row["method"] for row in blocks(page)["main"]["rows"]]  # where it is text for the page to show


def test_pictures_read_no_formula(store, tmp_path):
    from matplotlib import cbook
    from matplotlib import pyplot as plt
    from matplotlib.text import Text

    drawn = [figure(leaderboard(store))]
    for one in drawn:
        one.canvas.draw()
        texts = [text.get_text() for text in one.findobj(Text)]
        assert not [text for text in texts if cbook.is_math_text(text) or ACTS.search(text)]
        assert any("<script>" in text for text in texts)
        plt.close(one)
    picture = tmp_path / "board.png"
    printed(store, "table", "--picture", str(picture))
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_shows_labels_and_errors_as_they_stand(store, terminal):
    file = io.StringIO()
    shown = output.console(file, force_terminal=terminal, color_system=None, width=4000)
    hostile = store.study().cells[4]
    with display_for(shown, 3, 0) as display:
        display.note(f"a\n{HOSTILE}")
        display.cell_started(hostile.label)
        display.cell_progress(1, 2)
        display.cell_ended(hostile, "failed", HOSTILE)
    text = file.getvalue()
    assert "forged" not in [line.strip() for line in text.splitlines()]
    assert "[red]x\\x1b[2J\\x9b1m\\u202e" in text and ":smile:" in text
    assert "\x1b[2J" not in text and "\x9b" not in text and "\u202e" not in text


def test_doctor_and_failures_show_what_they_found_as_it_stands(tmp_path):
    file = io.StringIO()
    checks = [Check("data", "missing", HOSTILE, HOSTILE)]
    show(checks, output.console(file))
    assert not ACTS.search(file.getvalue()) and "[red]x" in file.getvalue()
    assert not ACTS.search(as_json(checks))
    for arguments in (["status", f"{tmp_path}/{HOSTILE}"], ["plan", f"{tmp_path}/{HOSTILE}"], [HOSTILE]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2 and not ACTS.search(done.stderr) and done.stderr.count("\n") == 1
