"""`finepruner doctor`: what it finds on this machine, and on machines that lack something."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import datasets
import doc_blocks
import pytest
from hub_content import finepruner
from typer.testing import CliRunner

from finepruner_lmms.checkpoints.fetch import DEMO
from finepruner_lmms.cli import app
from finepruner_lmms.data.task_folders import data_root
from finepruner_lmms.doctor import machine, readiness
from finepruner_lmms.doctor.check import Check, writable
from finepruner_lmms.judge.settings import JudgeServer
from finepruner_lmms.pruners import build_pruner

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def doctor(*arguments: object, expect: int) -> dict[str, dict]:
    """The checks by topic."""
    done = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    assert done.exit_code == expect, done.output
    found = json.loads(done.stdout)
    assert found["ready"] == (expect == 0)
    return {check["topic"]: check for check in found["checks"]}


@pytest.fixture
def root(tmp_path) -> Path:
    """Put together by hand, so without a manifest."""
    for name in ("pope", "gqa"):
        shutil.copytree(data_root("demo") / name, tmp_path / "root" / name)
    return tmp_path / "root"


def test_the_demo_study_is_ready():
    found = doctor(CONFIG, expect=0)
    assert {found[topic]["status"] for topic in ("torch", "lmms-eval model", "checkpoint", "attention")} == {"ok"}
    assert found["mmbench data"]["status"] == "ok" and found["torch"]["text"] == metadata.version("torch")


def test_a_root_is_looked_at_table_by_table(root):
    found = doctor("--data", root, "--tasks", "pope,gqa,mme", "--pretrained", "demo", expect=1)
    assert found["pope data"]["status"] == "warning"
    assert found["pope data"]["text"].startswith("240 rows in 1 file, first image 336x336; 9,000 expected (POPE paper")
    assert "398 expected" in found["gqa data (testdev_balanced_images)"]["text"]
    assert found["mme data"]["status"] == "missing" and f"prepare --data {root}" in found["mme data"]["fix"]


def test_a_table_that_cannot_be_used_is_missing(root):
    (file,) = (root / "pope").glob("*.parquet")
    table = datasets.Dataset.from_parquet(str(file))
    broken = table.cast_column("image", datasets.Image(decode=False)).select(range(2))
    broken = broken.map(lambda row: {"image": {"bytes": b"no picture", "path": None}})
    broken.to_parquet(file)
    (images,) = (root / "gqa" / "testdev_balanced_images").glob("*.parquet")
    images.write_bytes(images.read_bytes()[:1000])
    found = doctor("--data", root, "--tasks", "pope,gqa", expect=1)
    assert "the first image in 'image' cannot be decoded" in found["pope data"]["text"]
    assert "is not a readable parquet file" in found["gqa data (testdev_balanced_images)"]["text"]


def test_a_checkpoint_without_weights_is_missing(tmp_path):
    shutil.copytree(DEMO, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    found = doctor("--pretrained", tmp_path / "model", expect=1)
    assert found["checkpoint"]["text"].endswith("model lacks its weights")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model" / "model-00001-of-00002.safetensors").write_bytes(b"")
    found = doctor("--pretrained", tmp_path / "model", expect=1)
    assert found["checkpoint"]["text"].endswith("lacks its weights: model-00002-of-00002.safetensors")
    assert "cannot read the configuration" in doctor("--pretrained", "nobody/nothing", expect=1)["checkpoint"]["text"]


def test_the_clip_that_cdpruner_reads_questions_with_is_looked_for():
    pruner = build_pruner("cdpruner", budget=64, clip="nobody/clip")
    (check,) = readiness.clip_checks([build_pruner("fastv", budget=64), pruner], "demo")
    assert check.status == "missing" and "nobody/clip" in check.text and "--checkpoint nobody/clip" in check.command


def test_who_judges_mm_vet_is_said(monkeypatch):
    monkeypatch.delenv("FINEPRUNER_JUDGE", raising=False)
    check = readiness.judge_check(None)
    assert check.status == "warning" and "none is set" in check.text and "in a matrix file: `judge: ...`" in check.fix
    assert readiness.judge_check("later") == Check("mmvet judge", "ok", "answers are judged later")
    with socket.create_server(("127.0.0.1", 0)) as server:
        judge = JudgeServer(url=f"http://127.0.0.1:{server.getsockname()[1]}", model="m", key_env="NO_SUCH_KEY")
        check = readiness.judge_check(judge)
        assert check.status == "ok" and "without a key (NO_SUCH_KEY is not set)" in check.text
    assert "does not answer" in readiness.judge_check(judge).text
    monkeypatch.setenv("FINEPRUNER_JUDGE", "exact")
    assert doctor("--data", "demo", "--tasks", "mmvet", expect=0)["mmvet judge"]["text"] == "string match"


def test_versions_are_compared_with_those_asked_for_and_tested(monkeypatch):
    real = metadata.version
    found = {"transformers": "4.40.0", "pyarrow": "99.0"}

    def version(name: str) -> str:
        if name == "datasets":
            raise metadata.PackageNotFoundError(name)
        return found.get(name) or real(name)

    monkeypatch.setattr(machine.metadata, "version", version)
    checks = {check.topic: check for check in machine.versions()}
    assert checks["transformers"].status == "missing" and "asks for" in checks["transformers"].text
    install = f"{sys.executable} -m pip install datasets==5.2.0"
    assert checks["datasets"] == Check("datasets", "missing", "not installed", command=install)
    assert checks["pyarrow"].status == "warning" and checks["pyarrow"].text.startswith("99.0, tested with ")
    assert checks["torch"].status == "ok"


@pytest.mark.slow
def test_a_plug_in_of_somebody_else_that_breaks_lmms_eval_is_named(tmp_path):
    about = tmp_path / "aaa_broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lmms_eval.models]\nbroken = aaa_broken:manifests\n")
    (tmp_path / "aaa_broken.py").write_text("raise OSError('no such device')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    said = finepruner("doctor", "--json", env=os.environ | {"PYTHONPATH": path}, expect=1).stdout
    (check,) = [check for check in json.loads(said)["checks"] if check["topic"] == "lmms-eval plug-ins"]
    assert check["status"] == "missing" and "'aaa-broken' fails (OSError: no such device)" in check["text"]
    assert "lmms-eval does not know llava_finepruner because of it" in check["text"]
    assert check["fix"] == "repair or uninstall aaa-broken"


def test_our_entry_point_can_be_loaded_before_lmms_eval():
    code = (
        "from importlib.metadata import entry_points; "
        "[p.load()() for p in entry_points(group='lmms_eval.models') if p.value.startswith('finepruner_lmms.')]; "
        "from lmms_eval.models import MODEL_REGISTRY_V2 as r; print('llava_finepruner' in r.list_model_names())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True", done.stderr


def test_threads_that_fight_for_cores_are_a_warning(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert machine.threads().status == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert machine.threads().status == "warning"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "spin" in machine.threads().fix


def test_a_cache_that_cannot_be_written_is_missing(tmp_path):
    (tmp_path / "file").write_text("")
    assert writable("cache", tmp_path / "new" / "folder", "").status == "ok"
    assert writable("cache", tmp_path / "file" / "folder", "elsewhere").fix == "elsewhere"


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--tasks", "popi"], "unknown task 'popi' (did you mean 'pope'?)"),
        (["--data", "nowhere"], "data: 'nowhere' is neither 'hub', 'demo' nor an existing folder"),
        ([str(CONFIG), "--data", "demo"], "give a matrix file, or --data, --pretrained and --tasks, not both"),
    ],
)
def test_requests_that_are_wrong(arguments, text):
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.exit_code == 2 and text in done.output


def test_for_people_there_is_a_line_a_check():
    done = CliRunner().invoke(app, ["doctor", "--pretrained", "nobody/nothing"])
    (line,) = [line for line in done.output.splitlines() if " checkpoint " in line]
    assert line.startswith("missing  checkpoint ") and done.output.splitlines()[-1].startswith("not ready: ")


def test_a_matrix_file_that_is_wrong_is_one_line_and_the_rest_is_looked_at(tmp_path):
    file = tmp_path / "a study.yaml"
    file.write_text("name: x\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope, popi]\nmethods: [fastv]\n")
    found = doctor(file, expect=1)
    wrong = found["matrix file"]
    assert wrong["text"].startswith(f"{file}:4:15: tasks.1: unknown task 'popi'") and "(and 1 more)" in wrong["text"]
    assert wrong["command"] == f"finepruner plan '{file}'" and "\n" not in wrong["text"]
    assert found["pope data"]["status"] == found["checkpoint"]["status"] == "ok"
    file.write_text("name: [")
    assert doctor(file, expect=1)["torch"]["status"] == "ok"
    missing = doctor(tmp_path / "nowhere.yaml", expect=1)["matrix file"]
    assert missing["text"] == f"{tmp_path}/nowhere.yaml: cannot be read: No such file or directory"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "bert"}', '{"model_type": 3}', b"\xff\xfe"])
def test_a_checkpoints_configuration_that_cannot_be_read_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = doctor("--pretrained", tmp_path, "--data", "demo", "--tasks", "pope", expect=1)
    assert found["checkpoint"]["status"] == "missing" and "\n" not in found["checkpoint"]["text"]
    assert found["pope data"]["status"] == "ok"


def test_commands_that_are_printed_can_be_typed(tmp_path, monkeypatch):
    root = tmp_path / "a root"
    (root / "pope").mkdir(parents=True)
    (root / "pope" / "manifest.json").write_text("{}")
    monkeypatch.setenv("PATH", "/nowhere")
    lines = [
        check["command"] or re.sub(r".*`(.*)`.*", r"\1", check["fix"])
        for given, status in ((["--data", root, "--tasks", "pope,gqa"], 1), (["--data", "demo", "--tasks", "mme"], 1))
        for check in doctor(*given, "--pretrained", "nobody/none", expect=status).values()
        if check["command"] or "`finepruner" in check["fix"]
    ]
    assert any(f"--data '{root}' --tasks pope" in line for line in lines)
    assert any(line.endswith("--checkpoint nobody/none") for line in lines)
    assert any(line.startswith("export PATH=") for line in lines)
    for line in lines:
        for words in doc_blocks.commands(line):
            doc_blocks.check([Path(words[0]).name, *words[1:]])
