"""Every registered method passes every check; a new one is enrolled by being registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import references

import finepruner_lmms as fp
from finepruner_lmms.testing import CHECKS

DOCS = Path(__file__).parents[1] / "docs"
OURS = [name for name in fp.METHODS if fp.build_pruner(name).__module__.startswith("finepruner_lmms.")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", OURS)
def test_method(name, check):
    check(name, getattr(references, name))


@pytest.mark.parametrize("name", OURS)
def test_method_is_described(name):
    pages = [page.name for page in DOCS.glob("methods*.md") if f"\n## `{name}`\n" in page.read_text()]
    assert len(pages) == 1, f"docs/methods_*.md: sections on {name} in {pages or 'no page'}"
    assert f"[`{name}`]({pages[0]}#{name})" in (DOCS / "methods.md").read_text(), f"docs/methods.md: no row for {name}"
