"""What an id depends on: a finished cell survives what cannot change it, and nothing else."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

import finepruner_lmms as fp
from finepruner_lmms import files
from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.checkpoints.fetch import DEMO
from finepruner_lmms.cli import app
from finepruner_lmms.data import hub
from finepruner_lmms.data.identity import data_identity
from finepruner_lmms.data.task_folders import overrides_dir
from finepruner_lmms.lmms.identity import (
    LIBRARIES,
    Identity,
    answer_identity,
    canonical_parameters,
    cell_identity,
    checkpoint_identity,
    library_versions,
    resolved_dtype,
)
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.cells import expand
from finepruner_lmms.matrix.config import load_matrix
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.sources import Sources

PACKAGE = Path(fp.__file__).parent
PRUNERS = [
    *(fp.build_pruner(name) for name in ("vanilla", "fastv", "pdrop", "sparsevlm", "finepruner", "cdpruner", "random")),
    fp.build_pruner("divprune+fastv", budget=64, first=288),
]
TASKS = ("pope", "gqa", "mmbench", "mmbench_cn", "mmvet")
EVERYTHING = {(pruner.name, task) for pruner in PRUNERS for task in TASKS}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """The package without its model and this machine's leftovers."""
    target = tmp_path_factory.mktemp("original") / "finepruner_lmms"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("checkpoint", "__pycache__", "tasks_overrides"))
    shutil.copytree(overrides_dir(), target / "tasks_overrides")
    return target


@pytest.fixture
def package(original, tmp_path) -> Path:
    """A copy to be edited."""
    return Path(shutil.copytree(original, tmp_path / "finepruner_lmms"))


def identities(package: Path, pruners=PRUNERS) -> dict[tuple[str, str], Identity]:
    """Of every method on every task, by the code in a folder."""
    sources = Sources(package, "finepruner_lmms")
    found = {}
    for pruner in pruners:
        answers = answer_identity(pruner, {}, "float16", "c", 576, sources)
        found[pruner.name, ""] = answers  # of the answer cache
        for task in TASKS:
            found[pruner.name, task] = cell_identity(answers, task, None, False, "d", sources)
    return found


@pytest.fixture(scope="module")
def before(original) -> dict[tuple[str, str], Identity]:
    return identities(original)


def changed(package: Path, before: dict[tuple[str, str], Identity]) -> set[tuple[str, str]]:
    """Method and task of the ids that an edit changed."""
    after = identities(package)
    assert set(after) == set(before)
    return {key for key, identity in after.items() if identity.id != before[key].id}


def edit(package: Path, file: str, old: str, new: str) -> None:
    text = (package / file).read_text(encoding="utf-8")
    assert old in text, f"{file} has no {old!r}"
    (package / file).write_text(text.replace(old, new), encoding="utf-8")


def add(package: Path, file: str, code: str) -> None:
    with (package / file).open("a", encoding="utf-8") as target:
        target.write(f"\n\n{code}\n")


def test_words_new_methods_reports_and_judges_change_no_id(package, before):
    """The edits of a week: the ids of 400 finished cells, and the answer cache's keys, stay."""
    method = (package / "pruners" / "uniform.py").read_text(encoding="utf-8").replace('"uniform"', '"brand_new"')
    (package / "pruners" / "brand_new.py").write_text(method.replace("class Uniform", "class BrandNew"))
    edit(package, "pruners/__init__.py", "    uniform,\n", "    brand_new,\n    uniform,\n")
    for file in ("pruners/fastv.py", "engine/generate.py", "benchmarks/record.py", "lmms/model.py", "ops/selection.py"):
        text = (package / file).read_text(encoding="utf-8")
        words = re.sub(r'^( *)"""(?=[A-Z`])', r'\1"""Other words. ', text, flags=re.MULTILINE)
        assert words.count("Other words. ") > 2
        (package / file).write_text(f"{words}\n# a comment\n")
    edit(
        package,
        "pruners/fastv.py",
        "class FastV(OneDrop, AttentionGuided):\n",
        "class FastV(OneDrop, AttentionGuided):\n\n\n",
    )
    for file in ("matrix/report/tables.py", "matrix/store.py", "judge/client.py", "judge/mmvet.py", "data/prepare.py"):
        add(package, file, "NEW = 1")
    stores = [f"lmms/{name}.py" for name in ("response_cache", "journal", "sealed_lines", "plain_run", "batch_sizes")]
    for file in ("doctor/check.py", "lmms/monitor.py", *stores, "errors.py", "files.py", "cli.py"):
        add(package, file, "def new():\n    return 1")
    add(package, "engine/generate.py", "if TYPE_CHECKING:\n    import finepruner_lmms.heads.ablation")
    text = (package / "tasks_overrides" / "fp_pope.yaml").read_text(encoding="utf-8")
    (package / "tasks_overrides" / "fp_pope.yaml").write_text("# another comment\n" + text)
    assert changed(package, before) == set()


def of(*methods: str) -> set[tuple[str, str]]:
    """All cells of these methods, and their answers."""
    return {(method, task) for method in methods for task in (*TASKS, "")}


@pytest.mark.parametrize(
    "file, methods",
    [
        ("pruners/fastv.py", {"fastv", "finepruner", "divprune+fastv"}),  # finepruner is guided by it
        ("pruners/divprune.py", {"divprune+fastv"}),
        ("pruners/sparsevlm.py", {"sparsevlm", "finepruner"}),
        ("pruners/finepruner.py", {"finepruner"}),
        ("ops/clustering.py", {"sparsevlm", "finepruner"}),
        ("ops/token_scores.py", {"fastv", "pdrop", "sparsevlm", "finepruner", "divprune+fastv"}),
        ("heads/ablation.py", {"finepruner"}),
        ("heads/consensus/steps.py", {"finepruner"}),
        ("ops/selection.py", {pruner.name for pruner in PRUNERS}),  # the engine uses it
        ("pruners/base.py", {pruner.name for pruner in PRUNERS}),
        ("engine/clip.py", {pruner.name for pruner in PRUNERS}),  # imported inside a function
        ("checkpoints/prompts.py", {pruner.name for pruner in PRUNERS}),
        ("matrix/evaluate.py", {pruner.name for pruner in PRUNERS}),
    ],
)
def test_code_changes_the_cells_that_run_it(package, before, file, methods):
    add(package, file, "NEW = 1")
    assert changed(package, before) == of(*methods)


@pytest.mark.parametrize(
    "file, old, new, tasks",
    [
        ("benchmarks/pope.py", "", "NEW = 1", {"pope"}),
        ("benchmarks/mmbench.py", "", "NEW = 1", {"mmbench", "mmbench_cn"}),
        ("judge/mmvet_task.py", "", "NEW = 1", {"mmvet"}),
        ("tasks_overrides/fp_gqa.yaml", "max_new_tokens: 128", "max_new_tokens: 64", {"gqa"}),
        ("benchmarks/table.py", "", "NEW = 1", set(TASKS)),
    ],
)
def test_a_task_changes_its_cells_and_no_answer_key(package, before, file, old, new, tasks):
    edit(package, file, old, new) if old else add(package, file, new)
    found = changed(package, before)
    assert {task for _, task in found} == tasks
    assert len(found) == len(tasks) * len(PRUNERS)


@pytest.mark.slow
def test_a_plug_in_counts_as_a_whole_and_only_for_its_own_cells(original, before, tmp_path, monkeypatch):
    plugin = tmp_path / "plugged_pruner"
    plugin.mkdir()
    code = (PACKAGE / "pruners" / "uniform.py").read_text(encoding="utf-8").replace('"uniform"', '"plugged"')
    (plugin / "__init__.py").write_text(code)
    (plugin / "tables.py").write_text("TABLE = 1\n")  # nobody imports it by name
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("finepruner_lmms.pruners.registry._METHODS", dict(fp.pruners.registry._METHODS))
    importlib.import_module("plugged_pruner")
    try:
        plugged = [fp.build_pruner("plugged", budget=64)]
        first = identities(original, plugged)["plugged", "pope"]
        assert changed(original, before) == set()
        (plugin / "tables.py").write_text("# words\nTABLE = 1\n")
        assert identities(original, plugged)["plugged", "pope"] == first
        (plugin / "tables.py").write_text("TABLE = 2\n")
        second = identities(original, plugged)["plugged", "pope"]
        assert second.changes_since(first) == ["plugged's code changed"]
    finally:
        del sys.modules["plugged_pruner"]


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_mean_the_same_are_one():
    def settings(method: str, **parameters) -> dict:
        return canonical_parameters(fp.build_pruner(method, **parameters), 576)

    assert settings("fastv", budget=144) == settings("fastv", budget="144") == settings("fastv", budget="25%")
    assert settings("fastv", budget=" 25.0 %") == settings("fastv", budget=144, layer=2)
    assert settings("fastv", budget=144) != settings("fastv", budget=143) != settings("pdrop", budget=143)
    assert settings("fastv") == settings("fastv", budget=576)
    chain = {"budget": "64", "first": "50%"}
    assert settings("divprune+fastv", **chain) == settings("divprune+fastv", budget=64, first=288)
    assert settings("divprune+fastv", **chain) != settings("divprune+fastv", budget=64, first=287)


MATRIX = """\
name: study
model: {pretrained: demo}
data: demo
tasks: [pope]
limit: 8
methods: [vanilla, {method: random, budget: 64}]
"""


def cells(folder: Path, text: str = MATRIX):
    file = folder / "m.yaml"
    file.write_text(text, encoding="utf-8")
    return expand(load_matrix(file))


def test_the_type_that_auto_means_is_part_of_the_id(tmp_path, monkeypatch):
    found = {}
    for gpus in (0, 1):
        monkeypatch.setattr("finepruner_lmms.matrix.gpus.count_gpus", lambda gpus=gpus: gpus)
        for dtype in ("auto", "float32", "float16", "bfloat16"):
            named = MATRIX.replace("{pretrained: demo}", f"{{pretrained: demo, dtype: {dtype}}}")
            found[gpus, dtype] = [cell.id for cell in cells(tmp_path, named)]
    stored = resolved_dtype("auto", "cuda", str(DEMO))
    assert stored in ("float32", "float16", "bfloat16") and resolved_dtype("auto", "cpu", str(DEMO)) == "float32"
    assert found[0, "auto"] == found[0, "float32"] == found[1, "float32"]
    assert found[1, "auto"] == found[1, stored]
    named = [found[0, dtype][0] for dtype in ("float32", "float16", "bfloat16")]
    assert len(set(named)) == 3


def test_an_fp16_checkpoint_is_not_the_same_on_cpu_and_gpu(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava", "torch_dtype": "float16"}')
    assert resolved_dtype("auto", "cuda:0", str(tmp_path)) == "float16"
    assert resolved_dtype("auto", "cpu", str(tmp_path)) == "float32"
    assert resolved_dtype("bfloat16", "cpu", str(tmp_path)) == "bfloat16"


# -- checkpoints and data ---------------------------------------------------------------------------------------------


def test_a_checkpoint_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEPRUNER_CACHE", str(tmp_path / "cache"))
    reads = []
    read = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda path: (reads.append(path.name), read(path))[1])
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(3 << 20))
    one = checkpoint_identity(str(first))
    assert checkpoint_identity(str(first)) == one and reads == ["model.safetensors"]  # read once
    assert checkpoint_identity(str(second)) == one  # a copy
    os.utime(first / "model.safetensors", (1, 1))
    (first / "README.md").write_text("words")
    assert checkpoint_identity(str(first)) == one  # touched
    # replaced by other weights of the same size, with the same time
    other = tmp_path / "other"
    other.write_bytes(bytes(3 << 20)[:-1] + b"x")
    os.utime(other, (1, 1))
    other.replace(first / "model.safetensors")
    assert checkpoint_identity(str(first)) != one
    (second / "config.json").write_text("{ }")
    assert checkpoint_identity(str(second)) != one


def test_content_is_known_where_nothing_can_be_remembered(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("FINEPRUNER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").write_bytes(bytes(2 << 20))
    assert files.content_hash(tmp_path / "weights") == hub.sha256_of(tmp_path / "weights")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, without a network."""
    from datasets import config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    hub.commit_of.cache_clear()
    yield tmp_path
    hub.commit_of.cache_clear()


def test_a_hub_repository_is_known_by_its_commit(hub_cache):
    def identity(checkpoint: str, data: str) -> Identity:
        answers = answer_identity(PRUNERS[0], {}, "float16", checkpoint, 576)
        return cell_identity(answers, "gqa", None, False, data)

    nothing = identity(checkpoint_identity("owner/model"), data_identity("hub", "gqa"))
    assert nothing.unknown == ["owner/model", "lmms-lab-encoder/GQA"]
    hub.commit_of.cache_clear()
    refs = hub_cache / "hub" / "models--owner--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    read = hub_cache / "datasets" / "lmms-lab-encoder___GQA" / "testdev_balanced_instructions" / "0.0.0" / ("b" * 40)
    read.mkdir(parents=True)
    known = identity(checkpoint_identity("owner/model"), data_identity("hub", "gqa"))
    assert known.unknown == [] and known.data == f"lmms-lab-encoder/GQA@{'b' * 40}"
    assert known.changes_since(nothing) == [
        f"the checkpoint changed: owner/model@? → owner/model@{'a' * 40}",
        f"the data changed: lmms-lab-encoder/GQA@? → lmms-lab-encoder/GQA@{'b' * 40}",
    ]
    hub.commit_of.cache_clear()
    read.with_name("c" * 40).mkdir()  # which of the two would be read is not known
    assert data_identity("hub", "gqa").endswith("@?")


def test_a_root_made_by_hand_is_known_by_its_content(tmp_path):
    for root in ("one", "two"):
        (tmp_path / root / "pope").mkdir(parents=True)
        (tmp_path / root / "pope" / "a.parquet").write_bytes(b"rows")
    first = data_identity(str(tmp_path / "one"), "pope")
    assert data_identity(str(tmp_path / "two"), "pope") == first
    os.utime(tmp_path / "one" / "pope" / "a.parquet", (1, 1))
    assert data_identity(str(tmp_path / "one"), "pope") == first
    (tmp_path / "one" / "pope" / "a.parquet").write_bytes(b"ROWS")
    assert data_identity(str(tmp_path / "one"), "pope") != first


def test_every_change_has_a_name(before):
    identity = before["fastv", "pope"]
    changes = {
        "dtype": "float32",
        "checkpoint": "other",
        "data": "other",
        "libraries": identity.libraries | {"transformers": "0.1"},
        "engine": identity.engine | {"ops": "x", "engine": "y"},
        "method": {"fastv": "x"},
        "task": "x",
        "settings": "x",
    }
    assert set(changes) == set(Identity.model_fields)
    other = identity.model_copy(update=changes)
    assert other.id != identity.id
    assert other.changes_since(identity) == [
        "the settings changed",
        "dtype float16 → float32",
        "the checkpoint changed",
        "the data changed",
        f"transformers {identity.libraries['transformers']} → 0.1",
        "the code of engine, ops changed, which every cell runs",
        "fastv's code changed",
        "the task's definition or scoring changed",
    ]
    for name, value in changes.items():
        one = identity.model_copy(update={name: value})
        assert one.id != identity.id and len(one.changes_since(identity)) == 1
    assert identity.changes_since(identity) == []


def test_all_benchmarks_have_a_task_that_can_be_followed(original):
    sources = Sources(original, "finepruner_lmms")
    answers = answer_identity(PRUNERS[0], {}, "float16", "c", 576, sources)
    ids = {cell_identity(answers, task, None, served, "d", sources).id for task in BENCHMARKS for served in (0, 1)
           if not served or task in ("vqav2", "vizwiz", "mmbench", "mmbench_cn")}  # fmt: skip
    assert len(ids) == 14


def test_plan_says_why_a_finished_cell_does_not_count(tmp_path):
    vanilla, _random = cells(tmp_path)
    store = Store(tmp_path / "out")
    earlier = vanilla.identity.model_copy(update={"method": {"vanilla": "earlier"}})
    folder = store.root / "cells" / f"pope-vanilla-{earlier.id}"
    begin_attempt(folder, "1")
    spec = vanilla.spec() | {"identity": earlier.model_dump()}
    about = {"id": earlier.id, "spec": spec, "answered": 8, "expected": 8, "seconds": 1.0, "percent": 50.0}
    write_result(folder, about | {"standard_error": 1.0, "metrics": {"pope_f1_mean,none": 0.5}}, [])
    command = ["plan", str(tmp_path / "m.yaml"), "--output", str(store.root)]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert f"stale: vanilla's code changed (since {folder.name})" in " ".join(said.output.split())
    assert said.output.count("stale:") == 1  # the other was never done
    lines = [json.loads(line) for line in CliRunner().invoke(app, [*command, "--format", "jsonl"]).output.splitlines()]
    assert [line["reason"] for line in lines] == [f"vanilla's code changed (since {folder.name})", ""]


def test_versions_are_those_that_the_libraries_state():
    assert library_versions() == {name: metadata.version(name) for name in LIBRARIES}
