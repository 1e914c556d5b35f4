"""The pages lead where they say, on GitHub and as the site of `make docs`, and none is long."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium, opened

import finepruner_lmms as fp

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
MOST = 125
"""Lines of a page: about three screens."""
LOADS = r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"'](?:https?:)?//|<link\b[^>]*\bhref=[\"'](?:https?:)?//"
"""What makes a browser ask another host by itself; a link that a reader may follow is none."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def dead_links(page: Path) -> list[str]:
    """Relative links to files that are not there, or to headings that their pages do not have."""
    dead = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(f"{target}#{anchor}" if anchor else target)
    return dead


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_links_lead_somewhere(file):
    assert dead_links(file) == []


def test_a_dead_link_is_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# Some `code`, and more\n```\n## no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#some-code-and-more) [c](#here) [d](https://x.org/y)\n## Here\n"
        "[e](no.md) [f](other.md#no-heading) [g](#nowhere)\n```\n[h](no.md)\n```\n"
    )
    assert dead_links(page) == ["no.md", "other.md#no-heading", "#nowhere"]


@pytest.mark.parametrize("file", [page for page in PAGES if page.parent == ROOT / "docs"], ids=name)
def test_a_page_is_three_screens_at_most(file):
    """Tables that are looked up, not read, are in docs/appendix/."""
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST, f"{lines} lines"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site):
    built = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages | {"index.html", "changelog.html", "contributing.html"} <= built
    for page in built:
        text = (site / page).read_text(encoding="utf-8")
        assert re.findall(LOADS, text) == [], page
        assert not re.search(r"<code>[^<]*\\\|", text), f"{page}: `\\|` in code"
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style.name


@pytest.mark.slow
def test_the_reference_has_every_public_name_with_what_its_docstring_says(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    described = {found.rpartition(".")[2] for found in re.findall(r'<h2 id="finepruner_lmms\.([\w.]+)"', text)}
    assert set(fp.__all__) - {"METHODS", "HEAD_STRATEGIES"} <= described
    assert "at work on an unmodified model of transformers" in text


@pytest.mark.slow
def test_the_site_is_searched_from_a_folder_without_a_network(site):
    with chromium() as browser, opened(browser, site / "api" / "index.html", ready="true") as window:
        window.page.keyboard.press("/")
        window.page.keyboard.type("discordant")
        found = window.page.locator(".md-search-result__item").first
        found.wait_for(timeout=60_000)
        assert "tatistics" in found.inner_text()
