"""What the README shows works as it stands there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import torch
import yaml
from conftest import prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.pruners import registry as base

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_prints_what_stands_below_it(capsys):
    (example,) = [block for block in blocks("python") if "load_model" in block]
    (printed,) = blocks("text")
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_every_test_that_a_guarantee_names_exists():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", README)
    assert len(named) >= 5
    named += re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/architecture.md").read_text())
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_a_method_of_your_own_is_known_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    (example,) = [block for block in blocks("python") if "@register" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    pruner = fp.build_pruner("peak", budget=8)
    trace = fp.generate(tiny_llava(), pruner, prompts((4, 9)), max_new_tokens=1).trace
    assert len(trace.kept[2][0]) == pruner.schedule(6, 16)[-1]


def test_the_study_is_a_valid_matrix_file():
    (study,) = blocks("yaml")
    file = MatrixFile.model_validate(yaml.safe_load(study))
    for entry in file.methods[1:]:
        for budget in entry["budget"]:
            pruner = fp.build_pruner(entry["method"], budget=budget)
            assert len(pruner.schedule(32, 576)) == 32


def test_the_table_of_methods_is_complete():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE)
    assert sorted(name for name, _ in rows) == fp.METHODS
    for name, parameters in rows:
        known = set(fp.build_pruner(name).parameters())
        named = set(re.findall(r"`(\w+)`", parameters)) - {"fastv"}
        if "those of `fastv`" in parameters:
            named |= set(fp.build_pruner("fastv").parameters())
        assert named == known, name


def test_the_figure_paints_over_what_is_dropped_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    draw = importlib.import_module("draw_kept_tokens")
    image = np.full((336, 336, 3), 51, dtype=np.uint8)
    shown = draw.kept_tokens(image, torch.tensor([0, 25, 575]))
    # token 25 is the second of the second row: pixels 14 to 27 in both directions
    kept = np.zeros((336, 336), dtype=bool)
    kept[:14, :14] = kept[14:28, 14:28] = kept[322:, 322:] = True
    assert (shown[kept] == 0.2).all() and (shown[~kept] > 0.8).all()
