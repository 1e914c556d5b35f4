"""Outputs that cannot be written are refused before anything runs; terminals and signals as they really are."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from studies import cell, method, study
from typer.testing import CliRunner

from finepruner_lmms.cli import app
from finepruner_lmms.commands import preflight
from finepruner_lmms.errors import FieldError
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.matrix.store import Store

MATRIX = "name: x\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\nmethods: [vanilla]\n"
COMMAND = [sys.executable, "-m", "finepruner_lmms.cli"]


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2 and re.fullmatch(r"[^\n]+\n", done.stderr), done
    return done.stderr


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    def began(*_):
        raise AssertionError("it ran")

    monkeypatch.setattr("finepruner_lmms.matrix.store.Store.save_study", began)
    path = tmp_path / "x.yaml"
    path.write_text(MATRIX)
    (tmp_path / "file").write_text("")
    return path


@pytest.fixture
def store(tmp_path) -> Store:
    store, row = Store(tmp_path / "run"), method("vanilla")
    store.save_study(study([row], [cell("a", "pope", 0, row)]))
    return store


def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(config, tmp_path):
    for output, said in (
        (tmp_path / "file", "is a file; give a folder"),
        (tmp_path / "file" / "deeper", "stands below a file"),
        (tmp_path / ("n" * 300), "has a name that is too long"),
        (Path("/proc/nowhere"), "cannot be written"),
        (f"{tmp_path}/\udcff", "is not UTF-8"),
    ):
        assert said in refused("run", config, "--output", output) and not list(tmp_path.glob("**/.try-*"))


def test_a_disk_that_is_full_or_nearly_so_is_refused(config, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 5 << 20))
    assert "has 5 MiB left, and a run needs 64; make room" in refused("run", config, "--output", tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))  # a file system that does not say
    preflight.check_folder("--output", tmp_path / "out", preflight.ROOM)
    # a disk without room for the file that is tried: as ENOSPC, by the limit of a process
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from finepruner_lmms.commands.preflight import check_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\ncheck_folder('--output', Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert "FieldError: --output: " in done.stderr and "File too large" in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(config, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written to; give a folder that may be" in refused("run", config, "--output", tmp_path / "closed")


def test_a_picture_and_a_report_are_refused_before_they_are_made(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for given, said in (
        (tmp_path / "file" / "x.png", "is a file; give a folder"),
        (tmp_path / "run", "is a folder"),
        (tmp_path / ("n" * 300 + ".png"), "has a name that is too long"),
        (Path("/dev/null"), "is no regular file"),
    ):
        assert said in refused("report", store.root, "--to", given)
        if given.suffix == ".png":
            assert said in refused("table", store.root, "--picture", given)
    assert "ends in .png, .pdf or .svg" in refused("table", store.root, "--picture", tmp_path / "x.gif")
    assert "is a file; give a folder" in refused("bench", "--like", "tiny", "--out", tmp_path / "file")
    assert "is a file; give a folder" in refused("prepare", "--data", tmp_path / "file", "--tasks", "pope")


@pytest.mark.parametrize(
    "gpus, model, launch, field",
    [
        (0, {"device": "cuda"}, {}, "model.device"),
        (2, {"device": "cuda:2"}, {}, "model.device"),
        (2, {}, {"processes": 3}, "launch.processes"),
        (2, {"device": "cuda:1"}, {}, None),
        (2, {"device": "cpu"}, {"processes": 3}, None),
        (2, {}, {"processes": 3, "mode": "packed"}, None),
        (0, {}, {"processes": 3}, None),
        (2, {}, {"processes": 2}, None),
        (0, {"device": "cuda"}, {"executor": "slurm"}, None),
    ],
)
def test_gpus_that_are_not_there_are_refused(monkeypatch, gpus, model, launch, field):
    monkeypatch.setattr("finepruner_lmms.matrix.gpus.count_gpus", lambda: gpus)
    file = {"name": "x", "tasks": ["pope"], "methods": ["vanilla"], "model": model, "launch": launch}
    asked = MatrixFile.model_validate(file)
    if field is None:
        preflight.check_machine(asked)
    else:
        with pytest.raises(FieldError, match=f"{field}: got .*this machine shows {gpus or 'no'} GPU"):
            preflight.check_machine(asked)


# -- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_encoding_of_a_terminal_stops_no_command(store, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"}
    for arguments in (["status", store.root], ["table", store.root], ["--help"], ["status", "nöwhere–"]):
        done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, env=environment)
        assert b"Traceback" not in done.stderr and done.returncode == (2 if arguments[-1] == "nöwhere–" else 0)
        (done.stdout + done.stderr).decode(encoding)


def test_a_reader_that_goes_away_ends_a_command_quietly(store):
    with subprocess.Popen(
        [*COMMAND, "table", str(store.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_a_full_disk_behind_the_standard_output_is_one_line(store):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "table", str(store.root)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "No space left on device; make room\n")
    closed = subprocess.run(f"{' '.join(COMMAND)} status {store.root} >&-", shell=True, stderr=subprocess.PIPE)
    assert (closed.returncode, closed.stderr) == (0, b"")


# -- being stopped ----------------------------------------------------------------------------------------------------

SLEEPER = """
import sys, time
from pathlib import Path
from finepruner_lmms.data import task_folders
from finepruner_lmms.cli import main

def folder(*_):
    try:
        Path("ready").touch()  # in here: a signal may come before the next line
        time.sleep(SECONDS)
    finally:
        time.sleep(0.3)  # cleaning up, in which a second signal must not break in
        print("clean", flush=True)
    return "done"

task_folders.folder = folder
sys.argv.append("tasks")
main()
"""


def started(tmp_path: Path, *prefix: str, seconds: int = 60) -> subprocess.Popen[str]:
    ready, script = tmp_path / "ready", tmp_path / "sleeper.py"
    script.write_text(SLEEPER.replace("SECONDS", str(seconds)))
    process = subprocess.Popen(
        [*prefix, sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ready.exists()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_command_once_it_has_cleaned_up(tmp_path, number):
    process = started(tmp_path)
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (130, "clean\n", "stopped\n")


def test_nohup_is_respected(tmp_path):
    process = started(tmp_path, "nohup", seconds=1)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "clean\ndone\n"


def test_ctrl_c_while_it_starts_is_one_line(tmp_path):
    """Before any command: while libraries are imported."""
    code = "import builtins, sys\nreal = __import__\ndef stop(name, *rest):\n    if name == 'typer':\n"
    code += "        raise KeyboardInterrupt\n    return real(name, *rest)\nbuiltins.__import__ = stop\n"
    code += "from finepruner_lmms.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
