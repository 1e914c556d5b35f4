"""Every registered method passes every check; a new one is enrolled by being registered."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import references

import finepruner_lmms as fp
from finepruner_lmms.pruners.registry import needs_budget
from finepruner_lmms.testing import CHECKS
from finepruner_lmms.testing.samples import SMALL

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


@pytest.fixture(scope="module")
def timing():
    """The script that times what methods choose."""
    spec = importlib.util.spec_from_file_location("finepruner_selection", DOCS.parent / "benchmarks" / "selection.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("name", [name for name in OURS if needs_budget(name)])
def test_choosing_can_be_timed(name, timing):
    small = timing.Model(visual=64, layers=8, words=5, sizes=SMALL)
    for label, ours, loop in timing.cases(name, batch=2, budget=24, model=small):
        assert label.startswith(name)
        assert ours() is not None and (loop is None or loop())


def test_the_timing_says_that_a_budget_is_out_of_reach_and_goes_on(timing, capsys):
    small = timing.Model(visual=64, layers=8, words=5, sizes=SMALL)
    for name in ("coreprune", "uniform"):
        timing.report(name, budget=12, repeats=1, model=small)
    refused, *timed = capsys.readouterr().out.splitlines()
    assert refused.startswith("coreprune: budget: cannot reach") and refused.endswith("reachable: 16 to 64")
    assert [line.split()[:2] for line in timed] == [["uniform", "1"], ["uniform", "8"]]
