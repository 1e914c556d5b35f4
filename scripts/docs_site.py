"""What mkdocs needs beside the pages of docs/ (`hooks` in mkdocs.yml): pages and files of the repository around them.

README, CONTRIBUTING, CHANGELOG and the example package are pages of the site, too. Links are written as they work in a
checkout; here each is turned to where its target stands in the site. Other files that a page links to come along as
they are. A link that leads nowhere stays one, and mkdocs refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/peak_pruner/README.md": "peak_pruner.md",
}
"""Pages that stand outside docs/, and their names in the site."""
_LINK = re.compile(r"(\]\()([^)\s#]+)?(#[^)\s]*)?(\))")
_FENCED = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `PAGES`, and what any page links to."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for path in _targets(page.content_string, _origin(page.src_uri)):
            if path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file():
                name = f"repository/{path}"
                if name not in files.src_uris:
                    files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links turned, and `\\|` inside code of tables, which GitHub needs, as `|`."""
    parts = _FENCED.split(markdown)
    return "".join(part if number % 2 else _turned(part, page.file.src_uri) for number, part in enumerate(parts))


def _turned(text: str, page: str) -> str:
    origin = _origin(page)

    def turn(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match.groups(default="")
        if not target or _foreign(target):
            return match[0]
        place = _placed(_path(target, origin))
        return f"{opening}{posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor}{closing}"

    lines = _LINK.sub(turn, text).split("\n")
    return "\n".join(
        _CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line for line in lines
    )


def _targets(text: str, origin: str) -> set[str]:
    found = (match[2] for match in _LINK.finditer(_FENCED.sub("", text)))
    return {_path(target, origin) for target in found if target and not _foreign(target)}


def _foreign(target: str) -> bool:
    return target.startswith(("http://", "https://", "mailto:", "/"))


def _origin(page: str) -> str:
    """Where a page of the site stands in the repository."""
    return next((path for path, name in PAGES.items() if name == page), f"docs/{page}")


def _path(target: str, origin: str) -> str:
    """The file in the repository that `target` leads to from the page `origin`; of a folder its README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return f"{path}/README.md" if (ROOT / path).is_dir() else path


def _placed(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"
