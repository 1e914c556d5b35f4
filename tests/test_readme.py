"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from conftest import prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.pruners import registry as base

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(capsys):
    (example,) = [block for block in blocks("python") if "load_model" in block]
    exec(compile(example, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("['") and "tensor([" in said


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
