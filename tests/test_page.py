"""The report in a real browser: it sorts, filters, draws, goes by keyboard, offline; nothing in its data acts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import made_up
import pytest
from browser import Window, chromium, opened
from playwright.sync_api import Browser

from finepruner_lmms.matrix.report.page.html import write_report
from finepruner_lmms.matrix.store import Store

pytestmark = pytest.mark.slow  # starts a browser

HOSTILE = (
    "</script><script>window.acted=1</script><img src=x onerror='window.acted=1'>\"'`${window.acted=1}{{title}}"
    "\x1b[2J\x00\u202egnp.exe\u2066 שלום مرحبا 👩‍👩‍👧 =cmd|' /C calc'!A0 "
)


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    file = folder / "report.html"
    write_report([made_up.make(Store(folder / "run"))], file)
    return file


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    file = folder / "report.html"
    long = (HOSTILE + 200_000 * "long ")[:1_000_000]
    write_report([made_up.make(Store(folder / "run"), HOSTILE, HOSTILE, long)], file)
    return file


def column(window: Window, title: str) -> list[str]:
    """The texts of a column of the leaderboard, from top to bottom, without what stands below scores."""
    return window.page.evaluate(
        """(title) => {
            const table = document.querySelector("table.board");
            const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.trim().startsWith(title));
            return [...table.tBodies].flatMap((body) => [...body.rows]).map((row) => {
                const cell = row.cells[place].cloneNode(true);
                for (const under of cell.querySelectorAll(".under")) under.remove();
                return cell.textContent.trim();
            });
        }""",
        title,
    )


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-")) for text in texts if text != "–"]


def test_columns_sort_both_ways_and_back(started, report):
    with opened(started, report) as window:
        before = numbers(column(window, "GQA"))
        head = window.page.locator("th", has=window.page.locator("[data-column='t:gqa']"))
        button = head.get_by_role("button")
        button.click()
        assert numbers(column(window, "GQA")) == sorted(before, reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        assert "Sorted by GQA" in window.page.locator("#live").inner_text()
        window.page.keyboard.press("Enter")  # the button of the new table has the focus
        assert numbers(column(window, "GQA")) == sorted(before)
        window.page.keyboard.press("Enter")
        assert numbers(column(window, "GQA")) == before and head.get_attribute("aria-sort") is None
        assert window.page.locator("table.board tbody").count() == 3  # by budget again


def test_the_best_of_each_budget_stands_at_the_top(started, report):
    with opened(started, report) as window:
        said = window.page.locator("#tiles li").all_inner_texts()
        assert len(said) == 3 and said[0].startswith("vanilla") and "128 tokens" in said[1]
        averages = zip(column(window, "budget"), numbers(column(window, "average")), strict=True)
        best = max(average for budget, average in averages if budget == "128")
        assert f"{best:.1f} %" in said[1] and re.search(r"to vanilla \(.* to .*\)", said[1])


def test_rows_and_columns_are_filtered(started, report):
    with opened(started, report) as window:
        all_rows = len(column(window, "method"))
        window.page.get_by_role("group", name="Method").get_by_role("button", name="fastv").click()
        assert column(window, "method") == ["fastv"] * 2
        window.page.get_by_role("group", name="Budget").get_by_role("button", name="64").click()
        assert column(window, "budget") == ["64"]
        window.page.get_by_role("group", name="Task").get_by_role("button", name="TextVQA").click()
        heads = window.page.locator("table.board thead th").all_inner_texts()
        assert any("TextVQA" in head for head in heads) and not any("GQA" in head for head in heads)
        window.page.get_by_role("group", name="Budget").get_by_role("button", name="64").click()
        window.page.get_by_role("group", name="Method").get_by_role("button", name="fastv").click()
        window.page.get_by_label("Search rows").fill("sparsity heads=4")
        assert len(column(window, "method")) == 2
        window.page.get_by_label("Search rows").fill("nothing is called so")
        assert "No row is left" in window.page.locator("#leaderboard").inner_text()
        window.page.get_by_label("Search rows").fill("")
        assert len(column(window, "method")) == all_rows


def test_what_stands_under_a_score_is_chosen(started, report):
    with opened(started, report) as window:
        first = window.page.locator("table.board td .under").first
        assert re.search(r"\d to \d", first.inner_text())
        window.page.get_by_label("Under each score").select_option("error")
        assert first.inner_text().startswith("± ")
        window.page.get_by_label("Under each score").select_option("delta")
        shown = window.page.locator("table.board .under").all_inner_texts()
        assert any(text.endswith("↓") for text in shown) and any(text.startswith("+") for text in shown)
        window.page.get_by_label("Under each score").select_option("nothing")
        assert window.page.locator("table.board td .under").count() == 0


def test_scores_go_by_arrow_keys_and_open_their_questions(started, report):
    with opened(started, report) as window:
        page = window.page
        page.evaluate(
            "FP.openQuestions = (...told) => { window.told = told; }; FP.hasQuestions = () => true; FP.redraw()"
        )
        assert page.locator("button.score[tabindex='0']").count() == 1  # one stop of the Tab key
        page.locator("button.score[tabindex='0']").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.closest('tr').rowIndex") == 3
        page.keyboard.press("Enter")
        key, task, baseline = page.evaluate("window.told")
        assert (task, key, baseline) == ("textvqa", "made-up:fastv 128", "made-up:vanilla")


def test_plots_are_drawn_and_their_data_told(started, report):
    with opened(started, report) as window:
        page = window.page
        titles = page.locator("#plots figure h3").all_inner_texts()
        assert titles == [
            "What each budget loses: difference to vanilla",
            "Score against measured speed",
            "Score against computation",
        ]
        drop = page.locator("#plots figure").first
        assert drop.locator("svg[role=img]").get_attribute("aria-label").startswith("What each budget loses")
        assert {"fastv", "random", "vanilla", "visionzip"} <= set(drop.locator("svg text").all_text_contents())
        drop.locator("summary").click()
        drop.locator("tbody tr").first.wait_for()  # a row that is not seen yet has no text
        lines = drop.locator("tbody tr").all_inner_texts()
        random = [line for line in lines if line.startswith("random")]
        assert len(lines) == 15 and len(random) == 2
        axis = [
            float(text.replace("−", "-"))
            for text in drop.locator("g[data-part='y-axis tick label'] text").all_text_contents()
        ]
        worst = min(float(line.split("\t")[2].replace("−", "-")) for line in random)
        assert min(axis) > worst - 1  # zoomed on what is not random
        drop.get_by_label("Score").select_option("textvqa")
        assert drop.locator("svg[role=img]").count() == 1
        speed = page.locator("#plots figure").nth(1)
        assert "Measured on a made-up GPU" in speed.locator("figcaption").inner_text()
        speed.locator("summary").click()
        speed.locator("tbody tr").first.wait_for()
        front = [line.split("\t")[0] for line in speed.locator("tbody tr").all_inner_texts() if line.endswith("yes")]
        assert "vanilla" in front and not any(name.startswith("random") for name in front)


def test_heads_are_drawn_where_there_is_something_to_see(started, report, tmp_path):
    with opened(started, report) as window:
        titles = " | ".join(window.page.locator("#heads h3").all_inner_texts())
        for part in (
            "Strategies by budget",
            "over budgets",
            "Ranking",
            "How often each head",
            "have in common",
            "Consensus",
        ):
            assert part in titles
        for figure in window.page.locator("#heads figure").all():
            assert figure.locator("svg[role=img]").count() == 1
    found = [row for row in made_up.rows() if row.budget in (None, 64) and row.given.get("heads") != 2]
    assert len({row.budget for row in found}) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "rows", lambda: found)
        write_report([made_up.make(Store(tmp_path / "run"))], tmp_path / "few.html")
    with opened(started, tmp_path / "few.html") as window:
        titles = " | ".join(window.page.locator("#heads h3").all_inner_texts())
        assert "Strategies by budget" in titles and "over budgets" not in titles  # one budget is no line


def test_head_and_first_column_stay_where_the_table_scrolls(started, report):
    with opened(started, report, 390) as window:
        page = window.page
        page.set_viewport_size({"width": 390, "height": 500})
        frame = page.locator("#leaderboard .tall .scroll")
        frame.evaluate("frame => { frame.scrollLeft = 150; frame.scrollTop = 200; }")
        assert frame.evaluate("frame => frame.scrollLeft > 100 && frame.scrollTop > 100")
        corner, top = page.locator(".board thead th.name").bounding_box(), frame.bounding_box()
        assert corner and top and abs(corner["x"] - top["x"]) < 2 and abs(corner["y"] - top["y"]) < 2
        name, head = page.locator(".board tbody th").nth(9), page.locator(".board thead th").nth(2)
        row, column_head = name.bounding_box(), head.bounding_box()
        assert row and abs(row["x"] - top["x"]) < 2
        assert column_head and abs(column_head["y"] - top["y"]) < 2
        # by keyboard: sorted from the head, with the place kept, and no score hidden under head or names
        head = page.locator("[data-column='average']")
        head.focus()
        aside = frame.evaluate("frame => frame.scrollLeft")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.column") == "average"
        assert frame.evaluate("frame => frame.scrollLeft") == aside > 0
        assert page.locator("th[aria-sort=descending] [data-column='average']").count() == 1


def test_several_studies_are_told_apart(started, tmp_path):
    stores = [made_up.make(Store(tmp_path / name), f"study {name}") for name in "ab"]
    found = [row for row in made_up.rows() if row.method != "random"]  # of the second not all rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "rows", lambda: found)
        made_up.make(stores[1], "study b", answer="a bird")
    write_report(stores, tmp_path / "both.html")
    with opened(started, tmp_path / "both.html") as window:
        for section in ("heads", "provenance"):
            heads = window.page.locator(f"#{section} h3.study").all_inner_texts()
            assert heads == ["study a", "study b"]
        window.page.get_by_label("Search rows").fill("study b fastv 64")
        assert column(window, "method") == ["fastv"]
        assert "study b" in window.page.locator("table.board tbody th").inner_text()
        assert window.broken() == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(started, report, width, scheme):
    with opened(started, report, width, color_scheme=scheme, reduced_motion="reduce") as window:
        page = window.page
        for summary in page.locator("main summary").all():
            summary.click()
        page.wait_for_timeout(200)
        assert window.broken() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not re.search(r"undefined|NaN|\[object|null", page.locator("main").inner_text())
        if width == 390:
            assert page.locator(".scroll-outer.more-right").count() > 0  # the cue that a table goes on


def test_the_theme_changes_and_paper_shows_no_controls(started, report):
    with opened(started, report, color_scheme="light") as window:
        page = window.page
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.get_by_role("button", name="Dark").click()
        assert page.evaluate(ground) != light
        assert page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "true"
        page.emulate_media(media="print")
        assert not page.locator(".controls").first.is_visible() and not page.locator("nav").is_visible()
        assert page.locator("table.board").is_visible() and page.evaluate(ground) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [390, 1440])
def test_hostile_data_are_shown_and_do_nothing(started, hostile, width):
    with opened(started, hostile, width) as window:
        page = window.page
        page.get_by_label("Under each score").select_option("delta")
        for summary in page.locator("main summary").all():
            summary.click()
        assert page.evaluate("window.acted") is None
        assert page.evaluate("document.querySelectorAll('[onerror], main script, main img[src=x]').length") == 0
        said = page.locator("main").inner_text()
        assert "<script>window.acted=1</script>" in said and r"\x1b[2J\x00\u202egnp.exe\u2066" in said
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", said) and "👩‍👩‍👧" in said
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # even a script that found its way in would not run
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.acted=1'}))")
        assert page.evaluate("window.acted") is None
        assert len(window.wrong) == 1 and "Content Security Policy" in window.wrong.pop()
