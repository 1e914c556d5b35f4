"""One result from three places: the miniatures, a prepared root without network, and the hub's tasks over a mirror."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_content import CHECKPOINT, NAMES, OTHER_SPLITS, environment, finepruner, lay_out, repository
from lmms_eval.tasks import TaskManager
from mirror import serve
from studies import cell, method
from typer.testing import CliRunner

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.cli import app
from finepruner_lmms.data import task_folders as tasks
from finepruner_lmms.lmms.identity import cell_identity
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.matrix.evaluate import evaluate_cell

pytestmark = pytest.mark.slow
LIMIT = 4
MATRIX = """\
name: same
model: {{pretrained: demo}}
data: {data}
tasks: [{tasks}]
limit: {limit}
judge: exact
methods: [{{method: fastv, budget: 64}}]
launch: {{batch_size: 8}}
"""
Answers = dict[str, list[tuple[int, str]]]


def run_matrix(folder: Path, data: str, env: dict[str, str]) -> tuple[Answers, dict[str, float]]:
    """A run of the command line; answers and metrics by task."""
    folder.mkdir()
    config = folder / "matrix.yaml"
    config.write_text(MATRIX.format(data=data, tasks=", ".join(NAMES), limit=LIMIT))
    finepruner("run", config, "--output", folder / "out", env=env)
    answers, metrics = {}, {}
    for name in NAMES:
        (cell,) = (folder / "out" / "cells").glob(f"{name.replace('_', '-')}-fastv-*")
        samples = [json.loads(line) for line in (cell / "samples.jsonl").read_text().splitlines()]
        answers[name] = [(sample["doc_id"], sample["answer"]) for sample in samples]
        metrics[name] = json.loads((cell / "result.json").read_text())["metrics"][BENCHMARKS[name].metric]
    return answers, metrics


def run_here(folder: Path, data: str, pretrained: str) -> tuple[Answers, dict[str, float]]:
    """As the runner's worker does it, in this process, where the network is switched off."""
    lm = LlavaFinePruner(pretrained=pretrained, batch_size=8)
    manager = TaskManager(
        include_path=str(tasks.folder(data, limit=LIMIT)), include_defaults=False, model_name="llava_finepruner"
    )
    fastv = method("fastv", 64)
    lm.configure(method="fastv", budget=64)
    answers, metrics = {}, {}
    for name in NAMES:
        identity = cell_identity(lm.answer_identity(), name, LIMIT, False, "")
        one = cell(name, name, of=fastv, limit=LIMIT, identity=identity)
        outcome, samples = evaluate_cell(lm, manager, one, folder, folder / "cache" / name)
        answers[name] = [(sample["doc_id"], sample["answer"]) for sample in samples]
        if not BENCHMARKS[name].judged:
            metrics[name] = outcome.scores.metrics[BENCHMARKS[name].metric]
    return answers, metrics


def test_the_hub_a_prepared_root_and_the_miniatures_give_the_same(tmp_path, monkeypatch):
    home = tmp_path / "home"
    lay_out(tmp_path / "hub")
    with serve(tmp_path / "hub") as mirror:
        env = environment(mirror, home)
        finepruner("prepare", "--data", tmp_path / "root", "--tasks", ",".join(NAMES), "--checkpoint", CHECKPOINT,
                   "--accept-rows", env=env)  # fmt: skip
        mirror.requests.clear()
        answers, metrics = run_matrix(tmp_path / "run", "hub", env)
        asked = {path for _, path, _ in mirror.requests}
        assert all(any(f"/{repository(name)}/resolve/" in path for path in asked) for name in NAMES)
        # `datasets` fetches every split, `prepare` the one that is evaluated
        assert f"/cdn/{repository('textvqa')}/{OTHER_SPLITS['textvqa']}" in asked
    assert all(len(answers[name]) == LIMIT for name in NAMES)

    # the mirror is gone
    monkeypatch.setenv("FINEPRUNER_JUDGE", "later")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "tables"))
    scored = pytest.approx({name: value for name, value in metrics.items() if name != "mmvet"})
    model = tmp_path / "root" / "checkpoints" / CHECKPOINT
    assert run_here(tmp_path / "one", str(tmp_path / "root"), str(model)) == (answers, scored)
    assert run_here(tmp_path / "two", "demo", "demo") == (answers, scored)
    monkeypatch.delenv("HF_DATASETS_CACHE")

    # what was loaded from the hub once can be used without it; what was not is refused before anything is launched
    monkeypatch.setenv("HF_HOME", str(home))
    done = CliRunner().invoke(app, ["doctor", "--tasks", ",".join(NAMES), "--json"])
    checks = [check for check in json.loads(done.stdout)["checks"] if check["topic"].endswith(" data")]
    assert [check["status"] for check in checks] == ["ok"] * len(NAMES)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    config = tmp_path / "hub.yaml"
    config.write_text(MATRIX.format(data="hub", tasks="gqa, mmvet", limit=LIMIT))
    done = CliRunner().invoke(app, ["run", str(config), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2 and done.output.count("never loaded here, and the network is switched off") == 2
    assert not (tmp_path / "out").exists()
