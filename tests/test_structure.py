"""The seams of the package, checked where a reader would otherwise have to believe them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.study import open_study

PACKAGE = Path(__file__).parents[1] / "finepruner_lmms"
INTERNALS = re.compile(
    r"transformers\.(models|masking_utils|cache_utils|modeling_)|\.self_attn|\.language_model|register_forward|\.q_proj"
)


def test_transformers_internals_are_touched_in_one_room():
    touching = {
        file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob("*.py") if INTERNALS.search(file.read_text())
    }
    assert touching == {"engine", "testing"}  # the latter hooks layers to watch them


HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "datasets",
    "lmms_eval",
    "accelerate",
    "matplotlib",
    "pyarrow",
    "PIL",
)


def _loaded(code: str, *arguments: str) -> list[str]:
    """Which of `HEAVY` a fresh process has loaded after `code`."""
    code += f"\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stderr.strip().splitlines()[-1])


def test_what_a_plan_and_a_report_are_made_of_loads_no_tensors():
    modules = (
        "finepruner_lmms", "finepruner_lmms.commands.app", "finepruner_lmms.pruners", "finepruner_lmms.heads",
        "finepruner_lmms.ops.selection", "finepruner_lmms.benchmarks.table",
        "finepruner_lmms.checkpoints.configuration",
        "finepruner_lmms.lmms.identity", "finepruner_lmms.lmms.model_args", "finepruner_lmms.data.ready",
        "finepruner_lmms.judge.client", "finepruner_lmms.matrix.study", "finepruner_lmms.matrix.overview",
        "finepruner_lmms.matrix.status",
        "finepruner_lmms.matrix.runner", "finepruner_lmms.matrix.judging", "finepruner_lmms.matrix.report.leaderboard",
        "finepruner_lmms.matrix.report.tables", "finepruner_lmms.matrix.report.costs",
    )  # fmt: skip
    assert _loaded("\n".join(f"import {module}" for module in modules)) == []


def _command(*arguments: str) -> list[str]:
    """Which of `HEAVY` a command has loaded when it is done."""
    code = "import sys\nfrom finepruner_lmms.cli import app\napp(sys.argv[1:], standalone_mode=False)"
    return _loaded(code, *arguments)


@pytest.mark.slow
def test_commands_that_compute_nothing_load_no_tensors(tmp_path):
    """Down to a second `run` of what is done: its cells are found and shown without what could compute them."""
    config = tmp_path / "study.yaml"
    config.write_text(
        "name: study\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\n"
        "methods:\n  - vanilla\n  - {method: finepruner, budget: [64], heads: 4}\n"
        "  - {method: divprune+fastv, budget: 64, first: 288}\n"
    )
    output = str(tmp_path / "run")
    _finish(config, Path(output))
    assert _command("plan", str(config), "--output", output) == []
    assert _command("status", output) == []
    for command in (
        ("run", str(config), "--output", output),
        ("table", output),
        ("table", output, "--costs"),
        ("table", output, "--format", "csv"),
    ):
        assert _command(*command) == ["numpy"]  # for intervals and paired differences
    for command in ("run", "plan", "doctor", "judge", "prepare"):
        assert _command(command, "--help") == []


def _finish(config: Path, output: Path) -> None:
    """Write down a result for every cell of a study."""
    _, store, study = open_study(config, output)
    output.mkdir()
    store.save_study(study)
    for cell in study.cells:
        attempt = begin_attempt(store.cell_dir(cell), "1")
        assert attempt.is_dir()
        score = {"prediction": "yes", "ground_truth": "yes", "category": "random", "score": 1.0}
        sample = {"doc_id": 0, "target": "yes", "answer": "yes", "image": "a", "score": score}
        result = {"metrics": {BENCHMARKS[cell.task].metric: 1.0}, "percent": 100.0, "standard_error": None}
        about = {"id": cell.id, "spec": cell.spec(), "seconds": 1.0, "finished": "2026-01-01T00:00:00+00:00"}
        counted = {"answered": 1, "expected": 1, "batch_size": 1, "processes": 1, "device": "cpu"}
        write_result(store.cell_dir(cell), about | counted | result, [sample])
    assert {state.name for state in store.states(study.cells)} == {"done"}


def test_planning_looks_at_the_folder_of_cells_once(tmp_path, monkeypatch):
    """Not once a cell: ten thousand of them are planned in seconds."""
    config = tmp_path / "study.yaml"
    budgets = list(range(70, 170))
    config.write_text(
        "name: study\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope, mme]\n"
        f"methods: [{{method: fastv, budget: {budgets}}}]\n"
    )
    _, store, study = open_study(config, tmp_path / "run")
    (tmp_path / "run" / "cells").mkdir(parents=True)
    looked = []
    monkeypatch.setattr(Path, "glob", lambda self, pattern: looked.append(pattern) or iter(()))
    assert len(store.states(study.cells)) == 200 and len(looked) <= 1


def test_benchmarks_and_judges_take_no_tensors_from_the_lazy_libraries():
    """The import contract lets them have numpy from there."""
    for file in [*PACKAGE.glob("benchmarks/*.py"), *PACKAGE.glob("judge/*.py"), PACKAGE / "files.py"]:
        assert not re.search(r"lazy import .*\btorch\b", file.read_text()), file


def test_a_lazy_library_is_the_library():
    code = (
        "import sys\nfrom finepruner_lmms.lazy import Library\nlibrary = Library('json.tool')\n"
        "assert 'json.tool' not in sys.modules\nlibrary.added = 1\nimport json.tool\nassert json.tool.added == 1\n"
        "assert library.main is json.tool.main"
    )
    assert _loaded(code) == []
