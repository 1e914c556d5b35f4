"""The page: its assets and its data in one file that loads nothing from elsewhere and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from finepruner_lmms.files import write_text
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.page.blocks import Block, element
from finepruner_lmms.matrix.report.page.data import page_data
from finepruner_lmms.matrix.report.page.heads import heads_data
from finepruner_lmms.matrix.report.page.provenance import provenance_data
from finepruner_lmms.matrix.report.page.questions import question_blocks
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import html

D3, PLOT = "7.9.2", "0.6.17"
"""The versions of the kept libraries (`assets/vendor/README.md`)."""
_VENDOR = ("d3", "plot")
_SCRIPTS = ("core", "figure", "tiles", "table", "plots", "heads", "provenance")


def build_report(*stores: Store) -> str:
    """The report of one study or several as HTML. What is not done is left out or shown as missing.

    `StoreError` if nothing was planned.
    """
    board = leaderboard(*stores)
    named = list(zip(board.studies, stores, strict=True))
    main = page_data(board)
    main["heads"] = [heads_data(store, name, board) for name, store in named]
    main["provenance"] = [provenance_data(store, name) for name, store in named]
    about = [settings(store.study()) for store in stores]
    if len(stores) > 1:
        about = [f"{name}: {words}" for name, words in zip(board.studies, about, strict=True)]
    return page(board.name, "; ".join(about), [Block("main", main), *question_blocks(stores, board)])


def page(title: str, settings: str, blocks: Sequence[Block]) -> str:
    """A whole page. `title` and `settings` are texts of the study; blocks are its data."""
    scripts = list(_scripts())
    # no script but these runs, whatever text of a model or a file found its way into the page
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "title": html(title),
        "settings": html(settings),
        "style": "\n".join(_styles()),
        "d3": D3,
        "plot": PLOT,
        "blocks": "\n".join(map(element, blocks)),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    parts = _asset("page.html").split("{{")
    filled = [parts[0]]
    for part in parts[1:]:  # in one pass, so that nothing that is filled in is filled in again
        name, _, rest = part.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def settings(study: Study) -> str:
    """One line: the model, how many questions were asked, on which data."""
    if not study.num_layers:  # nothing was run, all is imported
        return study.model
    first = study.cells[0]
    asked = f"{first.limit} questions per task" if first.limit else "all questions"
    most = "up to " if study.images_differ else ""
    return f"{study.model}: {study.num_layers} decoder layers, {most}{study.num_visual_tokens} visual tokens, {asked}"


def write_report(stores: Sequence[Store], target: Path) -> None:
    """Write the report of one study or several to `target`, as a whole or not at all."""
    text = build_report(*stores)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)


def _scripts() -> Iterator[str]:
    """Those of the page in the order in which they run, each library with its licence before it."""
    for name in _VENDOR:
        yield f"/*\n{_asset(f'vendor/{name}.LICENSE.txt')}*/\n{_asset(f'vendor/{name}.min.js')}"
    for name in (*_SCRIPTS, *_names("flip", ".js")):
        yield _asset(f"{name}.js")


def _styles() -> Iterator[str]:
    for name in ("page", *_names("flip", ".css")):
        yield _asset(f"{name}.css")


def _names(start: str, end: str) -> list[str]:
    found = (file.name for file in files(__package__).joinpath("assets").iterdir())
    return sorted(name.removesuffix(end) for name in found if name.startswith(start) and name.endswith(end))


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
