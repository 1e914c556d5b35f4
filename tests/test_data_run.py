"""One result from three places: the miniatures, a prepared root without network, and the hub's tasks over a mirror."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_content import CHECKPOINT, NAMES, OTHER_SPLITS, environment, finepruner, lay_out, repository
from mirror import serve

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.tasks import overrides_dir

pytestmark = pytest.mark.slow
LIMIT = 4
MATRIX = """\
name: same
model: {{pretrained: {pretrained}}}
data: {data}
tasks: [{tasks}]
limit: {limit}
methods: [{{method: fastv, budget: 64}}]
launch: {{batch_size: 8}}
"""
Answers = dict[str, list[tuple[int, str]]]


def run_matrix(folder: Path, data: object, pretrained: object, env: dict[str, str]) -> Answers:
    """A run of the command line, as answers by task."""
    folder.mkdir()
    config = folder / "matrix.yaml"
    config.write_text(MATRIX.format(data=data, pretrained=pretrained, tasks=", ".join(NAMES), limit=LIMIT))
    finepruner("run", config, "--output", folder / "out", env=env)
    found = {}
    for name in NAMES:
        (file,) = (folder / "out").glob(f"cells/{name}-fastv-*/samples.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        found[name] = [(sample["doc_id"], sample["answer"]) for sample in samples]
    return found


def run_lmms_eval(folder: Path, env: dict[str, str]) -> tuple[Answers, dict[str, float]]:
    """lmms-eval's own command line on the tasks of `data: hub`; answers and metrics by task."""
    tasks = ",".join(BENCHMARKS[name].task for name in NAMES)
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_finepruner", "--batch_size", "8"]
    command += ["--model_args", "pretrained=demo,method=fastv,budget=64", "--limit", str(LIMIT), "--log_samples"]
    command += ["--tasks", tasks, "--include_path", str(overrides_dir()), "--output_path", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    found = list(folder.glob("demo/*_results.json"))
    assert len(found) == 1, f"{done.stdout}\n{done.stderr}"
    values = json.loads(found[0].read_text())["results"]
    metrics = {name: float(values[BENCHMARKS[name].task][BENCHMARKS[name].metric]) for name in NAMES}
    answers = {}
    for name in NAMES:
        (file,) = folder.rglob(f"*_samples_{BENCHMARKS[name].task}.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        answers[name] = sorted((sample["doc_id"], sample["filtered_resps"][0]) for sample in samples)
    return answers, metrics


def metrics_of(folder: Path) -> dict[str, float]:
    found = {}
    for name in NAMES:
        (file,) = (folder / "out").glob(f"cells/{name}-fastv-*/result.json")
        found[name] = json.loads(file.read_text())["metrics"][BENCHMARKS[name].metric]
    return found


def test_the_hub_a_prepared_root_and_the_miniatures_give_the_same(tmp_path):
    lay_out(tmp_path / "hub")
    with serve(tmp_path / "hub") as mirror:
        env = environment(mirror, tmp_path / "home")
        finepruner("prepare", "--data", tmp_path / "root", "--tasks", ",".join(NAMES), "--checkpoint", CHECKPOINT,
                   "--accept-rows", env=env)  # fmt: skip
        mirror.requests.clear()
        from_hub, hub_metrics = run_lmms_eval(tmp_path / "lmms", env)
        asked = {path for _, path, _ in mirror.requests}
        assert all(any(f"/{repository(name)}/resolve/" in path for path in asked) for name in NAMES)
        # `datasets` fetches every split, `prepare` the one that is evaluated
        assert f"/cdn/{repository('textvqa')}/{OTHER_SPLITS['textvqa']}" in asked
    # the mirror is gone, and the network is switched off
    off = env | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    model = tmp_path / "root" / "checkpoints" / CHECKPOINT
    from_root = run_matrix(tmp_path / "from-root", tmp_path / "root", model, off)
    from_demo = run_matrix(tmp_path / "from-demo", "demo", "demo", off)
    assert from_root == from_demo == from_hub
    assert all(len(answers) == LIMIT for answers in from_demo.values())
    assert metrics_of(tmp_path / "from-root") == metrics_of(tmp_path / "from-demo") == pytest.approx(hub_metrics)

    # what was loaded from the hub once can be used without it; what was not is refused before anything is launched
    checks = json.loads(
        finepruner("doctor", "--tasks", ",".join(NAMES), "--json", env=env | {"HF_HUB_OFFLINE": "1"}).stdout
    )
    assert [c["status"] for c in checks["checks"] if c["topic"].endswith(" data")] == ["ok"] * len(NAMES)
    config = tmp_path / "hub.yaml"
    config.write_text(MATRIX.format(data="hub", pretrained="demo", tasks="gqa, pope", limit=LIMIT))
    refused = finepruner("run", config, "--output", tmp_path / "out", env=off, expect=2)
    assert refused.stderr.count("was never loaded here, and the network is switched off") == 2
    assert not (tmp_path / "out").exists()
