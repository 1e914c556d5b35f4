"""The report in a real browser without a network: sorting, filtering, the questions behind a score, accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies import cell, finish, method, study

from finepruner_lmms.matrix.report.page.html import write_report
from finepruner_lmms.matrix.store import Store

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title='taken'</script>\u202e\x07<img src=x onerror=alert(1)>😀"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Three rows, of which the last is right where the second is wrong and says hostile things."""
    root = tmp_path_factory.mktemp("page")
    rows = [method("vanilla"), method("fastv", 128), method("fastv", 64)]
    store, cells = Store(root / "run"), []
    for number, (row, right) in enumerate(zip(rows, (55, 50, 20), strict=True)):
        cells.append(cell(f"gqa{number}", "gqa", number, row, data="nowhere"))
        said = HOSTILE * 20_000 if number == 2 else "yes"
        lines: list[Any] = [
            {"doc_id": n, "image": f"i{n // 2}", "target": HOSTILE, "answer": said, "score": float(n < right)}
            for n in range(60)
        ]
        finish(store, cells[-1], [{**line, "question": HOSTILE} for line in lines])
    store.save_study(study(rows, cells, name=HOSTILE))
    write_report(store, root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, report) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True)
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.goto(report.as_uri())
    opened.wait_for_selector("#leaderboard table")
    yield opened
    assert not said
    context.close()


def names(page) -> list[str]:
    return page.locator("#leaderboard tbody tr").evaluate_all("rows => rows.map(row => row.innerText.split('\\n')[0])")


def test_columns_sort_and_filters_leave_rows_out(page):
    whole = names(page)
    assert len(whole) == 3
    page.locator("#leaderboard thead button", has_text="GQA").click()
    first = page.locator("#leaderboard tbody tr").first.inner_text()
    page.locator("#leaderboard thead button", has_text="GQA").click()
    assert page.locator("#leaderboard tbody tr").first.inner_text() != first
    page.locator("#leaderboard .chip", has_text="fastv").click()
    assert len(names(page)) == 2


def test_a_score_opens_its_questions_and_keys_go_through_them(page):
    page.locator("#leaderboard button.score").last.click()
    page.wait_for_selector("#flip:not([hidden]) .panel")
    page.wait_for_function("document.querySelector('#flip').innerText.includes('questions changed')")
    assert page.evaluate("document.activeElement.id") == "flip-title"
    before = page.locator("#flip").inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert page.locator("#flip").inner_text() != before


def test_texts_of_others_stay_texts(page):
    page.locator("#leaderboard button.score").last.click()
    page.wait_for_function("document.querySelector('#flip').innerText.includes('questions changed')")
    assert page.evaluate("document.title") != "taken"
    assert page.locator("img[src=x]").count() == 0 and page.locator("#flip").inner_text().count("\u202e") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_serious_is_wrong_for_readers_who_cannot_see_or_point(browser, report, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    opened = context.new_page()
    opened.goto(report.as_uri())
    opened.wait_for_selector("#leaderboard table")
    opened.wait_for_timeout(500)
    found = axe.run(opened).response["violations"]
    assert not [one for one in found if one["impact"] in ("serious", "critical")]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
