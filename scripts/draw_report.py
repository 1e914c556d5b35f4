"""Pictures of a report for the docs, as a wide window and as a phone show it, without the machine it was run on.

    python scripts/draw_report.py runs/study --out docs

Needs Chromium: on the path, named by `FINEPRUNER_CHROMIUM`, or got by `playwright install chromium`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from finepruner_lmms.matrix.report.page.html import write_report
from finepruner_lmms.matrix.store import Store

_WIDTHS = (1440, 390)
_TIDY = """document.activeElement.blur();
document.querySelector("#provenance").remove();
document.querySelector(".top").style.position = "static";
scrollTo(0, 0);"""


def draw(browser: Browser, page: Path, width: int, target: Path) -> None:
    """One picture of the page, with the leaderboard of the unpruned model and the smallest budgets only."""
    window = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme="light", reduced_motion="reduce")
    window.goto(page.as_uri())
    window.wait_for_function("window.FP && FP.data")
    chips = window.get_by_role("group", name="Budget").get_by_role("button")
    for place in {0, chips.count() - 1, max(0, chips.count() - 2)}:
        chips.nth(place).click()
    window.evaluate("document.querySelector('#flip').scrollIntoView()")  # what is looked at is unpacked
    window.wait_for_timeout(2000)
    window.evaluate(_TIDY)
    window.screenshot(path=target, full_page=True)
    window.close()
    picture = Image.open(target).convert("RGB")
    # a page has few colours: half the bytes
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="output directory of a run")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    chromium = os.environ.get("FINEPRUNER_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        write_report([Store(asked.study)], page)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in _WIDTHS:
            draw(browser, page, width, asked.out / f"report_{width}.png")
        browser.close()


if __name__ == "__main__":
    main()
