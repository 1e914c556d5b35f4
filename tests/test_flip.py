"""The questions behind the scores: what is put into a report, within which limits, and what a browser shows of it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, opened
from PIL import Image
from studies import cell, finish, method, study

from finepruner_lmms.benchmarks.limits import recorded
from finepruner_lmms.engine.families.family import View
from finepruner_lmms.lmms.traced import Stage, Traced
from finepruner_lmms.matrix.boxes import Box
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.page import html, questions
from finepruner_lmms.matrix.report.page.answers import verdict_of
from finepruner_lmms.matrix.report.page.blocks import element
from finepruner_lmms.matrix.report.page.pictures import allowance, as_seen, boxes_as_seen, thumbnail
from finepruner_lmms.matrix.report.page.questions import Limits, question_blocks
from finepruner_lmms.matrix.report.page.traced import nibbles, traced_entry
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.traces import write_traces

QUESTIONS, WIDTH, HEIGHT = 60, 336, 168
BOX = [56, 28, 112, 84]
"""In pixels; padded to a square of 336, it covers the tokens of rows 2 and 3 and columns 1 and 2 of 6 × 6 in part."""
RIGHT = {0: set(range(50)), 1: set(range(10, 56)), 2: set()}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Data:
    """Questions as `matrix.questions.Questions` gives them."""

    def __contains__(self, number: int) -> bool:
        return number < QUESTIONS

    def evidence(self, number: int) -> list[list[int]]:
        return [BOX] if number % 2 else []

    def text(self, number: int) -> str:
        return f"What is in picture {number // 2}?\nAnswer."

    def pictures(self, number: int) -> list[Image.Image]:
        values = np.random.default_rng(number // 2).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        return [Image.fromarray(values).resize((WIDTH, HEIGHT))]

    def categories(self, _: str) -> dict[int, str]:
        return {number: "even" if number % 2 == 0 else "odd" for number in range(QUESTIONS)}


def traced(number: int, *, maps: bool) -> Traced:
    """Of 36 tokens 12 stay before layer 2, the others are merged into 2; of these 12, the 4 of a corner before 5."""
    first, second = np.zeros(36, dtype=bool), np.zeros(36, dtype=bool)
    first.reshape(6, 6)[2:4] = True
    second.reshape(6, 6)[2:4, 1:3] = True
    drawn = np.random.default_rng(number).integers(0, 256, (2, 6, 6), dtype=np.uint8) if maps else None
    stages = (
        Stage(2, first, ~first, (3, 1), (0.0, 0.25, 0.0, 0.75), drawn, made=2),
        Stage(5, second, None, None, None, None, made=2),
    )
    return Traced(number, (6, 6), 36, stages, (36, 36, 14, 14, 14, 6, 6, 6))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    rows, cells = [method("vanilla"), method("fastv", 4), method("random", 4)], []
    store = Store(tmp_path_factory.mktemp("flip"))
    for number, row in enumerate(rows):
        cells.append(cell(f"gqa{number}", "gqa", number, row, data="nowhere"))
        lines: list[Any] = [
            {"doc_id": n, "image": f"i{n // 2}", "target": ["cat", "cat", "dog"], "answer": f"answer {number} {n}",
             "score": float(n in RIGHT[number])}
            for n in range(QUESTIONS)
        ]  # fmt: skip
        finish(store, cells[-1], lines)
    for number in (1, 2):
        write_traces(store.cell_dir(cells[number]), [traced(n, maps=number == 1) for n in range(QUESTIONS)])
    store.save_study(study(rows, cells))
    return store


def blocks_of(store: Store, limits: Limits | None = None, data: Any = None) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "stored_questions", lambda *_: data or Data())
        return {block.name: block.value for block in question_blocks([store], leaderboard(store), limits)}


# -- what is put into a report ----------------------------------------------------------------------------------------


def test_every_question_has_a_verdict_and_the_recorded_ones_are_shown(store):
    found = blocks_of(store, Limits(questions=20))
    task, row = found["q/0"], found["q/0/1"]
    assert [one["number"] for one in task["shown"]] == sorted(recorded(range(QUESTIONS), 20))
    verdicts = [task["values"][ord(code) - ord("1")] for code in row["codes"]]
    assert verdicts == [float(n in RIGHT[1]) for n in range(QUESTIONS)]
    assert row["answers"][0] == f"answer 1 {task['shown'][0]['number']}"
    assert task["shown"][0]["target"] == "cat (×2) / dog"
    assert len(row["traces"]) == 20 and found["q/0/0"]["traces"] == [None] * 20


def test_rows_are_named_by_the_keys_of_the_leaderboard(store):
    keys = {line.label: line.key for line in leaderboard(store).lines}
    assert {row["label"]: row["key"] for row in blocks_of(store)["q/index"]["rows"]} == keys


def test_questions_about_one_picture_share_it(store):
    task, pictures = blocks_of(store)["q/0"], blocks_of(store)["q/pictures/0"]
    assert len(task["pictures"]) == QUESTIONS // 2 and task["shown"][0]["picture"] == task["shown"][1]["picture"]
    for start, length, width, height in task["pictures"]:
        picture = Image.open(io.BytesIO(pictures[start : start + length]))
        assert picture.format == "WEBP" and picture.size == (width, height) and width == height  # padded


def test_pictures_and_maps_stay_within_their_limits(store):
    few = Limits(pictures=60_000, maps=1_500)
    found = blocks_of(store, few)
    assert len(found["q/pictures/0"]) <= few.pictures
    mapped = [place for place, one in enumerate(found["q/0/1"]["traces"]) if "maps" in one["st"][0]]
    assert len(mapped) == few.maps // 36  # two maps of 36 in 4 bits
    shown = found["q/0"]["shown"]
    differs = {n for n in range(QUESTIONS) if len({n in RIGHT[row] for row in RIGHT}) > 1}
    assert {shown[place]["number"] for place in mapped} <= differs
    assert any("Attention maps of 41 of 60" in note for note in found["q/0"]["notes"])


def test_without_data_answers_are_shown_without_pictures(store):
    found = {block.name: block.value for block in question_blocks([store], leaderboard(store))}  # "nowhere" is no data
    assert "q/pictures/0" not in found and found["q/0"]["shown"][0]["question"] == ""
    assert any("not at hand" in note for note in found["q/0"]["notes"])


def test_a_long_answer_is_cut_and_says_so(store):
    assert questions._cut("a" * 1_000_000).endswith("… (1000000 characters)")


def test_the_share_of_evidence_is_that_of_the_boxes_as_the_model_sees_them():
    boxes = boxes_as_seen([BOX], (WIDTH, HEIGHT), "pad")
    assert boxes == (Box(56 / 336, (28 + 84) / 336, 112 / 336, (84 + 84) / 336),)
    first, second = traced_entry(traced(0, maps=False), boxes, True)["st"]
    assert first["evidence"] == second["evidence"] == 1.0
    off = traced_entry(traced(0, maps=False), (Box(0, 0, 1 / 6, 0.5),), True)["st"]  # rows 0 to 2 of column 0
    assert (off[0]["evidence"], off[0]["merged_evidence"], off[1]["evidence"]) == (0.333, 0.667, 0.0)


def test_a_picture_is_seen_padded_or_cropped_or_whole():
    picture = Image.new("RGB", (40, 20), "red")
    assert as_seen(picture, "pad").size == (40, 40) and as_seen(picture, "pad").getpixel((20, 2)) != (255, 0, 0)
    assert as_seen(picture, "crop").size == (20, 20) and as_seen(picture, "stretch").size == (40, 20)
    assert boxes_as_seen([[10, 0, 20, 20]], (40, 20), "crop") == (Box(0, 0, 0.5, 1),)


@pytest.mark.parametrize("given", [None, "text", [[1, 2]], [["a", 0, 1, 1]], [[5, 5, 5, 9]], [[float("nan")] * 4]])
def test_what_is_no_box_is_left_out(given):
    assert boxes_as_seen(given, (10, 10), "stretch") == ()


def test_a_thumbnail_is_as_large_as_it_may_be():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    sizes = [len(thumbnail(noise, most).content) for most in (24_000, 8_000, 4_000)]
    assert all(size <= most for size, most in zip(sizes, (24_000, 8_000, 4_000), strict=True)) and sizes[0] > sizes[2]
    assert allowance(3, 12_000_000) == 24_000 and allowance(2_000, 12_000_000) == 6_000


def test_maps_are_in_sixteen_steps_two_in_a_byte():
    packed = base64.b64decode(nibbles(np.array([[[0, 255, 136]]], dtype=np.uint8)))
    assert packed == bytes([0x0F, 0x80])


def test_a_row_of_mmbench_is_right_by_its_letter():
    entry = {"answer": "B", "prediction": "B. dog", "A": "cat", "B": "dog", "C": None, "D": None, "index": 1}
    assert verdict_of({"doc_id": 0, "image": "", "target": "", "answer": "", "score": entry}) == 1.0
    assert verdict_of({"doc_id": 0, "image": "", "target": "", "answer": "", "score": entry | {"letter": "A"}}) == 0.0


# -- what a browser shows ---------------------------------------------------------------------------------------------


TILES = (
    View(4, 4),
    *(View(4, 4, (x / 2, 0.0, (x + 1) / 2, 1.0), 1) for x in range(2)),
)
"""The whole picture in 4 × 4 tokens, a newline, and then its left and its right half in as many each."""


def tiled(number: int) -> Traced:
    """Of the whole picture the upper half stays, and of the tiles the left one."""
    kept = np.zeros(49, dtype=bool)
    kept[[*range(8), 16, *range(17, 33)]] = True
    drawn = np.full((1, 12, 12), 255, dtype=np.uint8)
    return Traced(number, None, 49, (Stage(2, kept, maps=drawn),), (48, 48, 24, 24), TILES, (16,))


@pytest.fixture(scope="module")
def tiled_store(tmp_path_factory) -> Store:
    rows, cells = [method("vanilla"), method("fastv", 24)], []
    store = Store(tmp_path_factory.mktemp("tiled"))
    for number, row in enumerate(rows):
        cells.append(cell(f"gqa{number}", "gqa", number, row, data="nowhere"))
        lines: list[Any] = [
            {"doc_id": n, "image": f"i{n}", "target": "cat", "answer": "cat", "score": float(n in RIGHT[number])}
            for n in range(QUESTIONS)
        ]
        finish(store, cells[-1], lines)
    write_traces(store.cell_dir(cells[1]), [tiled(n) for n in range(QUESTIONS)])
    store.save_study(study(rows, cells).model_copy(update={"images_differ": True}))
    return store


def test_tiles_are_in_the_page_with_their_places():
    entry = traced_entry(tiled(3), (), True)
    assert entry["v"] == [[4, 4, 0, 0, 1, 1, 0], [4, 4, 0, 0, 0.5, 1, 1], [4, 4, 0.5, 0, 1, 1, 1]]
    assert entry["sep"] == [16] and "g" not in entry and entry["st"][0]["maps"]["shape"] == [1, 12, 12]


@pytest.mark.slow
def test_tiles_are_drawn_over_the_picture_sheet_by_sheet(tiled_store, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "stored_questions", lambda *_: Data())
        html.write_report([tiled_store], file := tmp_path / "report.html")
    light = """() => { const it = document.querySelectorAll('#flip canvas')[1], high = it.width / 2;
      const all = it.getContext('2d').getImageData(0, 0, it.width, it.height).data, below = it.height - high;
      const mean = (left, top, width, height) => { let sum = 0, count = 0;
        for (let y = Math.ceil(top) + 4; y < top + height - 4; y++)
          for (let x = Math.ceil(left) + 4; x < left + width - 4; x++, count++) sum += all[4 * (y * it.width + x)];
        return sum / count; };
      return [mean(0, 0, it.width, high / 2), mean(0, high / 2, it.width, high / 2),
        mean(0, below, it.width / 2, high), mean(it.width / 2, below, it.width / 2, high)]; }"""
    with chromium() as browser, opened(browser, file) as window:
        window.page.locator("#leaderboard tbody tr", has_text="fastv").locator("button.score").click()
        window.page.wait_for_selector("#flip canvas[data-drawn]")
        drawn(window.page, "0 25")
        window.page.keyboard.press("b")  # without frames
        upper, lower, left, right = window.page.evaluate(light)
        assert min(upper, left) > 80 > 50 > max(lower, right)  # of a picture of noise, around 127
        assert "25 of 49 tokens" in window.page.locator("#flip").inner_text()
        plain = window.page.locator("#flip canvas").nth(1).screenshot()
        window.page.keyboard.press("h")
        drawn(window.page, "0 25 0")
        assert window.page.locator("#flip canvas").nth(1).screenshot() != plain


@pytest.fixture(scope="module")
def report(store, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "stored_questions", lambda *_: Data())
        html.write_report([store], file := tmp_path_factory.mktemp("page") / "report.html")
    return file


@pytest.fixture
def page(report) -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened, said = browser.new_context(viewport={"width": 1440, "height": 1000}, offline=True).new_page(), []
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.goto(report.as_uri())
        opened.locator("#leaderboard tbody tr", has_text="fastv").locator("button.score").click()
        opened.wait_for_selector("#flip canvas[data-drawn]")
        yield opened
        assert not said
        browser.close()


def drawn(page, what: str) -> None:
    """Waits until the second picture is drawn so: the question's number, how many tokens are kept, which head."""
    page.wait_for_function("what => document.querySelectorAll('#flip canvas')[1]?.dataset.drawn === what", arg=what)


@pytest.mark.slow
def test_what_changed_between_two_rows_is_shown_stage_by_stage_by_mouse_and_keyboard(page):
    flip = page.locator("#flip")
    assert "16 of 60 questions changed" in flip.locator(".flip-counts").inner_text()  # 10 lost, 6 won
    assert flip.locator(".flip-list li").count() == 16
    drawn(page, "0 4")
    assert "4 of 36 tokens and 2 new tokens" in flip.inner_text()
    page.keyboard.press("ArrowRight")
    drawn(page, "1 4")
    assert "evidence kept: 100 %" in flip.inner_text()
    page.keyboard.press("[")
    drawn(page, "1 12")
    assert "12 of 36 tokens and 2 new tokens, 24 merged" in flip.inner_text()
    plain = flip.locator("canvas").nth(1).screenshot()
    page.keyboard.press("h")
    drawn(page, "1 12 0")
    assert flip.locator("canvas").nth(1).screenshot() != plain
    assert flip.locator(".flip-heads [aria-pressed=true]").inner_text() == "3 · 0.75"
    flip.locator(".chip", has_text="Only fastv 4 right (6)").click()
    drawn(page, "50 12 0")
    flip.locator(".controls select").last.select_option("odd")
    page.wait_for_function("document.querySelectorAll('#flip .flip-list li').length === 3")
    flip.locator("button", has_text="Swap").click()
    page.wait_for_function("document.querySelector('#flip h3').innerText === 'fastv 4'")
    assert (
        "3 of 30 questions changed" not in flip.inner_text() and "8 of 30" in flip.locator(".flip-counts").inner_text()
    )


@pytest.mark.slow
def test_dropped_tokens_are_dark_and_kept_ones_as_they_were(page):
    page.keyboard.press("b")  # without frames
    light = """cells => { const it = document.querySelectorAll('#flip canvas')[1], step = it.width / 6;
      const all = it.getContext('2d').getImageData(0, 0, it.width, it.height).data;
      return cells.map(([row, column]) => { let sum = 0, count = 0;
        for (let y = Math.ceil(row * step) + 4; y < (row + 1) * step - 4; y++)
          for (let x = Math.ceil(column * step) + 4; x < (column + 1) * step - 4; x++, count++)
            sum += all[4 * (y * it.width + x)];
        return sum / count; }); }"""
    kept, dropped = page.evaluate(light, [[2, 1], [2, 4]])
    assert kept > 80 > 50 > dropped  # of a picture of noise, around 127


def test_blocks_hold_no_text_that_could_end_their_element(store):
    for block in question_blocks([store], leaderboard(store)):
        assert "<" not in element(block).partition(">")[2].removesuffix("</script>")
