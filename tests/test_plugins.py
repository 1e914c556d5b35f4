"""Methods, head strategies and queries from files and installed packages are known wherever a name is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import prompts, tiny_llava

import finepruner_lmms as fp
from finepruner_lmms import plugins
from finepruner_lmms.errors import FieldError
from finepruner_lmms.heads import register_head_strategy
from finepruner_lmms.heads.queries import QUERIES, known_queries, register_query
from finepruner_lmms.heads.registry import STRATEGIES
from finepruner_lmms.lmms.model_args import ModelArguments
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.yaml_places import ConfigError

FILE = """\
from dataclasses import dataclass
from finepruner_lmms.heads import register_head_strategy
from finepruner_lmms.heads.queries import register_query
from finepruner_lmms.pruners import register
from finepruner_lmms.pruners.fastv import FastV
from {name}_help import FACTOR


@register("{name}")
@dataclass(frozen=True, kw_only=True)
class Own(FastV):
    def select(self, context, retained):
        return self.keep_best(context.attention.amax(1) * FACTOR, context, retained)


@register_head_strategy("{name}_strategy")
def strategy(view):
    return -view.mass


@register_query("{name}_query")
def query(words):
    return words.present.float()
"""
STUDY = """\
name: own
model: {{pretrained: demo}}
data: demo
tasks: [pope]
plugins: [code/{name}.py]
methods:
  - {{method: {name}, budget: 64}}
  - {{method: finepruner, budget: 64, heads: 4, head_strategy: {name}_strategy, query: {name}_query}}
  - {{method: fastv, budget: 64}}
"""


@pytest.fixture
def clean(monkeypatch):
    """Registries, paths and the environment as they were."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    from finepruner_lmms.pruners import registry

    for owner, name in (
        (registry, "_METHODS"),
        (registry, "_PLACES"),
        *((k, "_functions") for k in (STRATEGIES, QUERIES)),
    ):
        monkeypatch.setattr(owner, name, dict(getattr(owner, name)))


def study(folder: Path, name: str, file: str | None = None) -> Path:
    (folder / "code").mkdir()
    (folder / "code" / f"{name}.py").write_text((FILE if file is None else file).format(name=name))
    (folder / "code" / f"{name}_help.py").write_text("FACTOR = 1.0\n")
    (folder / "m.yaml").write_text(STUDY.format(name=name))
    return folder / "m.yaml"


def test_a_file_of_ones_own_is_named_in_the_matrix_file_and_found_from_its_folder(tmp_path, clean):
    matrix = load_matrix(study(tmp_path, "own_one"))
    assert [row.pruner.name for row in matrix.rows] == ["own_one", "finepruner", "fastv"]
    assert matrix.file.plugins == (str(tmp_path / "code" / "own_one.py"),)
    assert "own_one" in fp.METHODS and "own_one_strategy" in fp.HEAD_STRATEGIES and "own_one_query" in known_queries()
    assert os.environ[plugins.VARIABLE] == str(tmp_path / "code" / "own_one.py")
    given = "method=finepruner,budget=64,query=own_one_query,head_strategy=own_one_strategy"
    assert (
        ModelArguments.parse(dict(pair.split("=") for pair in given.split(","))).build_pruner().query == "own_one_query"
    )


def test_processes_started_afterwards_know_the_same_names(tmp_path, clean):
    load_matrix(study(tmp_path, "own_two"))
    program = (
        "import json, finepruner_lmms as fp\n"
        "print(json.dumps([fp.build_pruner('own_two', budget=64).name,"
        " fp.build_pruner('finepruner', budget=64, heads=4, query='own_two_query').query,"
        " fp.build_pruner('finepruner', budget=64, heads=4, head_strategy='own_two_strategy').head_strategy]))"
    )
    for order in (program, program.replace("fp.build_pruner('own_two', budget=64).name,", "")):
        done = subprocess.run([sys.executable, "-c", order], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[-2:] == ["own_two_query", "own_two_strategy"]


def test_the_file_and_what_lies_beside_it_count_for_its_own_rows_alone(tmp_path, clean):
    file = study(tmp_path, "own_three")
    program = (
        "import sys, json; from pathlib import Path\n"
        "from finepruner_lmms.matrix.cells import expand; from finepruner_lmms.matrix.config import load_matrix\n"
        "print(json.dumps([cell.id for cell in expand(load_matrix(Path(sys.argv[1])))]))"
    )

    def ids() -> list[str]:
        done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    before = ids()
    (tmp_path / "code" / "own_three_help.py").write_text("FACTOR = 2.0\n")
    after = ids()
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, False]
    (tmp_path / "code" / "own_three_help.py").write_text("FACTOR = 1.0  # words\n")
    assert ids() == before


@pytest.mark.parametrize(
    "text, what",
    [
        (None, "is not there; name a file such as my_method.py"),
        ("x = \n", r"cannot be imported: SyntaxError: invalid syntax .*\(line 1\)"),
        ("\nraise ValueError('no\\nway')\n", r"cannot be imported: ValueError: no \(line 2\)"),
        ("import finepruner_lmms.heads as h\nh.register_head_strategy('sum')(len)\n", "the name 'sum' belongs to"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_its_place(tmp_path, clean, text, what):
    name = f"own_bad{abs(hash(what))}"
    file = study(tmp_path, name, text)
    if text is None:
        (tmp_path / "code" / f"{name}.py").unlink()
    with pytest.raises(ConfigError, match=rf"m\.yaml:5:11: plugins\.0: .*{what}") as error:
        load_matrix(file)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_does_not_take_the_place_of_an_installed_module(tmp_path, clean):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(FieldError, match=r"plugins\.0: 'json\.py' has the name of another module \(.*\); rename"):
        plugins.load_files([tmp_path / "json.py"])


def test_names_that_are_taken_or_none_are_refused(clean):
    register_query("mine")(len)
    register_query("mine")(len)  # the same again, as when a module is read anew
    for register, name, what in [
        (register_query, "mine", "belongs to builtins.len already"),
        (register_query, "last", "means something else"),
        (register_head_strategy, "consensus", "means something else"),
        (register_head_strategy, "a b", "no usable name"),
        (register_head_strategy, "sum", "belongs to finepruner_lmms.heads.ablation"),
    ]:
        with pytest.raises(FieldError, match=what):
            register(name)(max)
    with pytest.raises(FieldError, match="which is no function"):
        register_query("five")(5)


def test_a_query_of_ones_own_decides_what_is_kept(clean):
    @register_query("first_word")
    def first(words):
        return (words.present & (words.present.cumsum(1) == 1)).float()

    @register_query("last_word")
    def last(words):
        size = words.present.shape[1]
        return (words.present & (torch.arange(size, device=words.present.device) == size - 1)).float()

    model, inputs = tiny_llava(), prompts((4, 9))

    def kept(query: str) -> list[list[int]]:
        pruner = fp.build_pruner("finepruner", budget=8, heads=2, query=query)
        return [rows.tolist() for rows in fp.generate(model, pruner, inputs, max_new_tokens=1).trace.kept[2]]

    assert kept("last_word") == kept("last") != kept("first_word")
    with pytest.raises(FieldError, match=r"query: got 'frist_word' \(did you mean 'first_word'\?\); known: last, "):
        fp.build_pruner("finepruner", budget=8, query="frist_word")


def test_model_args_without_a_budget_are_vanilla_only_by_name():
    assert ModelArguments.parse({}).build_pruner().name == "vanilla"
    for given in ({"method": "fastv"}, {"method": "finepruner", "heads": 4}, {"enable_dynamic_selection": True}):
        with pytest.raises(FieldError, match=r"budget: is missing, and without one '.*' would keep every"):
            ModelArguments.parse(given)
    assert fp.build_pruner("fastv").schedule(4, 16) == [16] * 4  # in Python, None is every token
