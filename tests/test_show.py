"""What methods keep of one picture: as data, as a figure, as a page, in the terminal, and by the command."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from studies import cell, finish, method, study
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from typer.testing import CliRunner

import finepruner_lmms as fp
from finepruner_lmms.asking.compared import Comparison, Seen, Stage, compare_methods, label_of
from finepruner_lmms.asking.show import darkened, figure
from finepruner_lmms.asking.show_page import page
from finepruner_lmms.asking.show_text import print_pictures, table
from finepruner_lmms.asking.views import Picture
from finepruner_lmms.cli import app
from finepruner_lmms.demo.shown import example
from finepruner_lmms.engine.families.family import View
from finepruner_lmms.engine.families.internvl import arrangement
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.traced import Stage as RecordedStage
from finepruner_lmms.lmms.traced import Traced
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.traces import write_traces
from finepruner_lmms.output import console
from finepruner_lmms.pruners.written import read_method, read_methods
from finepruner_lmms.testing.families import tiny_model
from finepruner_lmms.testing.tiny_checkpoints import tiny_processor


@pytest.fixture(scope="module")
def demo():
    return fp.load_model("demo")


def made_up(text: str = "yes", question: str = "Is it?") -> Comparison:
    picture = Picture(Image.new("RGB", (20, 20), (200, 100, 50)), (View(2, 2),), 4)
    kept = np.array([True, False, False, True])
    return Comparison(question, (picture,), (Seen("vanilla", text), Seen("fastv 2", text, (Stage(1, (kept,), 2),))))


def test_what_is_drawn_is_what_the_trace_says(demo):
    given = example("demo")
    found = compare_methods(
        *demo, given.image, given.question, read_methods(["fastv:64"]), expected=given.expected, max_new_tokens=4
    )
    answer = fp.answer(*demo, given.image, given.question, fp.build_pruner("fastv", budget=64), max_new_tokens=4)
    (stage,) = found.rows[1].stages
    assert stage.layer == 2 and stage.kept[0].nonzero()[0].tolist() == answer.trace.kept[2][0].tolist()
    assert found.rows[1].text == answer.text and found.rows[0].right is True
    assert 0 < found.rows[1].first_token <= found.rows[1].seconds
    shown = darkened(found.pictures[0], stage.kept[0])
    tokens = np.asarray(given.image)[7::14, 7::14].reshape(576, 3)
    assert (shown[7::14, 7::14].reshape(576, 3)[stage.kept[0]] == tokens[stage.kept[0]]).all()
    assert (shown[7::14, 7::14].reshape(576, 3)[~stage.kept[0]] == (tokens[~stage.kept[0]] * 0.25).astype(int)).all()


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl"])
def test_tiles_are_drawn_where_their_tokens_stand(name):
    """Each token of the whole picture and of its tiles lights its own part, and all together every pixel."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 48, 3), dtype=np.uint8)
    found = fp.answer(
        tiny_model(name), tiny_processor(name), Image.fromarray(noise), "?",
        fp.build_pruner("random", budget="50%"), max_new_tokens=1,
    )  # fmt: skip
    (picture,) = found.pictures
    count = sum(view.rows * view.columns for view in picture.views)
    assert picture.sheets == [0, 1] and count == picture.num_visual_tokens
    covered = {sheet: np.zeros((24, 48), dtype=int) for sheet in picture.sheets}
    for token in range(count):
        for sheet in picture.sheets:
            covered[sheet] += picture.light(np.arange(count) == token, sheet)
    assert all((times == 1).all() for times in covered.values())
    assert len(fp.show(found).axes) == 2


def test_internvl_tiles_lie_as_its_processor_cuts_them():
    rng = random.Random(0)
    for _ in range(2000):
        width, height, most = rng.randint(20, 4000), rng.randint(20, 4000), rng.choice((1, 4, 6, 12))
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert arrangement(columns * rows, (width, height)) == (rows, columns)


def test_what_a_method_cannot_do_is_said_in_its_row_and_the_others_answer(demo):
    given = example("demo")
    found = compare_methods(*demo, given.image, "?", read_methods(["cdpruner:64"]), max_new_tokens=1)
    assert "CLIP" in found.rows[1].problem and not found.rows[0].problem
    assert "CLIP" in table(found) and "CLIP" in page(found) and len(figure(found).axes) == 1


def test_the_evidence_that_is_kept_is_the_share_of_it_that_kept_tokens_show():
    found = replace(made_up(), evidence=((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.0, 0.25, 0.5)))
    (stage,) = found.rows[1].stages
    assert found.evidence_kept(stage) == 0.5 and made_up().evidence_kept(stage) is None
    merged = Stage(0, (np.zeros(4, dtype=bool),), 2)
    assert found.evidence_kept(merged) is None  # each token has a part in what is left
    assert "2 of 4, from layer 1 (50% of the evidence)" in table(found)
    assert "2 of 4, from layer 1; 50% of the evidence" in page(found)
    places = re.findall(r'class="evidence" style="left:([\d.]+)%;top:0.00%;width:([\d.]+)%;height:50.00%', page(found))
    assert places == [("0.00", "50.00"), ("50.00", "50.00"), ("0.00", "25.00")] * 2
    framed = figure(found).axes[1].patches
    assert len(framed) == 6 and framed[0].get_x() < 0 and framed[0].get_width() > 10  # outside of what it frames


def test_pooled_tokens_are_not_shown_as_dropped():
    stage = Stage(0, (np.zeros(4, dtype=bool),), 2)
    assert stage.title == "4 merged to 2, before layer 0" and stage.shown(0).all()


def test_a_page_runs_nothing_of_what_a_model_or_a_user_wrote():
    written = page(made_up("<script>alert(1)</script>\x1b[2J", '<img src=x onerror="alert(2)">'))
    assert "<script" not in written and "<img src=x" not in written and "\x1b" not in written
    assert re.findall(r'src="(?!data:image)', written) == [] and "http" not in written
    assert "\x1b" not in table(made_up("\x1b[2J"))


def test_a_terminal_without_colours_shows_marks(capsys):
    print_pictures(made_up(), console(color_system=None, width=80))
    assert "▀▄" in capsys.readouterr().out


def test_answers_to_different_questions_are_not_shown_together(demo):
    image, vanilla = example("demo").image, fp.build_pruner("vanilla")
    one, other = (fp.answer(*demo, image, text, vanilla, max_new_tokens=1) for text in ("a", "b"))
    with pytest.raises(FieldError, match="different pictures or questions"):
        fp.show(one, other)
    assert fp.show(one, one)._repr_png_().startswith(b"\x89PNG")


def test_methods_are_read_as_they_are_written():
    assert read_method("fastv", "11%") == ("fastv 11%", fp.build_pruner("fastv", budget="11%"))
    label, pruner = read_method("finepruner:64:heads=4", 32)
    assert label == "finepruner 64 heads=4" == label_of(pruner)
    with pytest.raises(FieldError, match="fastv' has no budget"):
        read_method("fastv")


def test_the_command_writes_every_kind_and_prints_answers_and_times(tmp_path):
    files = [tmp_path / f"kept.{kind}" for kind in ("html", "png")]
    given = ["--out", str(files[0]), "--out", str(files[1]), "--methods", "pdrop,fastv"]
    done = CliRunner().invoke(app, ["show", "demo", *given])
    assert done.exit_code == 0, done.output
    assert "right answer: 2" in done.stdout and re.search(r"vanilla +all 576 +2  ✓ .* m?s", done.stdout)
    written = files[0].read_text()
    assert written.count("<figure>") == written.count('<span class="evidence"') == 6
    assert Image.open(files[1]).width > 500 and re.search(
        r"fastv 64 .*30 of 576, from layer 2 \(0% of the ev", done.stdout
    )


@pytest.mark.parametrize(
    "given, said",
    [
        (["x.png"], "give IMAGE QUESTION"),
        (["missing.png", "?"], "IMAGE: cannot read"),
        (["demo", "--out", "kept.doc"], "--out: got"),
        (["demo:x"], "IMAGE: got 'demo:x'"),
        (["demo", "--methods", "fastvv"], "did you mean 'fastv'"),
        (["demo", "--budget", "many"], "--budget: got 'many'"),
    ],
)
def test_a_wrong_request_is_one_line(given, said):
    done = CliRunner().invoke(app, ["show", *given])
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def recorded(tmp_path):
    """Two rows of a study about the demo's POPE: what fastv kept of question 2 is recorded, vanilla dropped nothing."""
    rows, store, cells = [method("vanilla"), method("fastv", 64)], Store(tmp_path / "run"), []
    for number, row in enumerate(rows):
        cells.append(cell(f"pope{number}", "pope", number, row, data="demo"))
        lines = [
            {
                "doc_id": n, "image": f"i{n // 6}", "target": "yes", "answer": ("no", "yes")[n % 2],
                "score": {"prediction": ("no", "yes")[n % 2], "ground_truth": "yes", "category": "random"},
            }
            for n in range(6)
        ]  # fmt: skip
        finish(store, cells[-1], lines)
    kept = np.zeros(576, dtype=bool)
    kept[:30] = True
    entering = (576, 576, *[30] * 30)
    write_traces(store.cell_dir(cells[1]), [Traced(2, (24, 24), 576, (RecordedStage(2, kept),), entering)])
    store.save_study(study(rows, cells))
    return store.root


def test_a_question_of_a_study_is_shown_as_it_was_answered_and_recorded(recorded, tmp_path):
    found = CliRunner().invoke(app, ["show", str(recorded), "pope", "2", "--out", str(tmp_path / "q.png")])
    assert found.exit_code == 0, found.output
    fastv = next(line for line in found.output.splitlines() if line.startswith("fastv 64"))
    assert re.search(r"30 of 576, from layer 2 \(\d+% of the evidence\)", fastv) and "no  ✗" in fastv
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    page = CliRunner().invoke(app, ["show", str(recorded), "pope", "3", "--out", str(tmp_path / "q.html")])
    assert page.exit_code == 0, page.output
    fastv = next(line for line in page.output.splitlines() if line.startswith("fastv 64"))
    assert "not recorded" in fastv and "✓" in fastv  # and never "all 576"
    vanilla = next(line for line in page.output.splitlines() if line.startswith("vanilla"))
    assert "all 576" in vanilla


@pytest.mark.parametrize(
    "words, says",
    [
        (["gqa", "2"], "TASK: got 'gqa'"),
        (["pope", "99"], "give one that was asked, such as 3, 4, 5"),
        (["pope", "two"], "expected the number of a question"),
        (["pope", "2", "--budget", "32"], "--budget: a question of a study is shown as it was answered"),
    ],
)
def test_a_question_that_is_not_there_is_named(recorded, words, says):
    found = CliRunner().invoke(app, ["show", str(recorded), *words])
    assert found.exit_code == 2 and says in found.output
