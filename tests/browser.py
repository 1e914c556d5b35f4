"""A real browser for pages: headless Chromium without a network, which collects whatever goes wrong in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"


def executable() -> str | None:
    """Chromium: what `FINEPRUNER_CHROMIUM` names, or one on the path; None where playwright is to find its own."""
    return os.environ.get("FINEPRUNER_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped where there is none (`playwright install chromium` gets one)."""
    with sync_playwright() as started:
        if executable() is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium: install one, or name it in FINEPRUNER_CHROMIUM")
        browser = started.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Window:
    """A page that is open, and everything that it complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))

    def broken(self) -> list[dict[str, Any]]:
        """What axe-core finds that is serious or critical: each rule with the elements that break it."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            {"rule": rule["id"], "where": [node["html"][:200] for node in rule["nodes"]]}
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]


@contextmanager
def opened(
    browser: Browser, file: Path, width: int = 1440, ready: str = "window.FP && FP.data", **context: Any
) -> Iterator[Window]:
    """A file in a window of its own, offline, once `ready` holds; nothing may have gone wrong when it is closed."""
    made = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **context)
    window = Window(made.new_page())
    window.page.goto(file.as_uri())
    window.page.wait_for_function(ready)
    yield window
    assert window.wrong == []
    assert {url.partition(":")[0] for url in window.asked} <= {"file", "blob", "data"}
    made.close()
