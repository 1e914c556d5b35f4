"""The command line: what an expected failure prints, and the exit status of each kind."""

from __future__ import annotations

import errno
import re

import pytest
from typer.testing import CliRunner

from finepruner_lmms.claims import Locked
from finepruner_lmms.cli import app
from finepruner_lmms.data.errors import DataError
from finepruner_lmms.errors import FieldError
from finepruner_lmms.judge.client import JudgeError
from finepruner_lmms.matrix.store import StoreError

ONE_LINE = re.compile(r"[^\n]+\n")


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "error, status, text",
    [
        (FieldError("budget", "got 0", fix="give more"), 2, "budget: got 0; give more\n"),
        (DataError("data", "pope is not there"), 2, "data: pope is not there\n"),
        (StoreError("output: 'x' is in use"), 2, "output: 'x' is in use\n"),
        (Locked("x", "process 1 on a"), 2, "x: held by process 1 on a\n"),
        (JudgeError("no answer"), 1, "no answer\n"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, "runs/x: Permission denied\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "runs/x: No space left on device; make room\n",
        ),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error\n"),
    ],
)
def test_an_expected_failure_is_one_line_and_a_documented_status(monkeypatch, error, status, text):
    def fail(*_):
        raise error

    monkeypatch.setattr("finepruner_lmms.data.task_folders.folder", fail)
    done = invoke("tasks")
    assert (done.exit_code, done.stderr, done.stdout) == (status, text, "")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("finepruner_lmms.data.task_folders.folder", fail)
    assert isinstance(invoke("tasks").exception, ValueError)


def test_ctrl_c_is_130(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("finepruner_lmms.data.task_folders.folder", stop)
    done = invoke("tasks")
    assert (done.exit_code, done.stderr) == (130, "stopped\n")


@pytest.mark.parametrize("arguments", [["tabel"], ["table"], ["table", "x", "--no"], ["prepare"], ["compare", "x"]])
def test_a_mistyped_command_line_is_one_line_too(arguments):
    done = invoke(*arguments)
    assert done.exit_code == 2 and ONE_LINE.fullmatch(done.stderr) and "--help` says more" in done.stderr


def test_wrong_requests_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x\n")
    (tmp_path / "m.yaml").write_text("name: x\ntasks: [pope]\nmethods: [vanilla]\nlimit: 0x_\n")
    for arguments, wanted in [
        (("plan", tmp_path / "m.yaml"), f"{tmp_path}/m.yaml:4:8: limit: got '0x_', which may be read as"),
        (("run", tmp_path), f"{tmp_path}: cannot be read: Is a directory"),
        (("plan", tmp_path / "m.yaml", "--format", "xml"), "--format: got 'xml'; known: text, jsonl"),
        (("status", tmp_path / "none"), "none"),
        (("table", tmp_path / "none"), "none"),
        (("compare", tmp_path / "none", "a", "b"), "none"),
        (("report", tmp_path / "file"), "file"),
        (("judge", tmp_path / "file", "--exact"), f"{tmp_path}/file:1: not JSON"),
        (("judge", tmp_path / "file", "--exact", "--url", "http://h"), "--exact: needs no server"),
        (("tasks", "--data", "nowhere"), "data: 'nowhere' is neither"),
        (("prepare", "--data", tmp_path / "root", "--tasks", "pop"), "tasks: unknown task 'pop'"),
        (("prepare", "--data", tmp_path / "root", "--revision", "pope"), "--revision: got 'pope'; expected task="),
        (("prepare", "--data", tmp_path / "root", "--from", "nowhere"), "--from: 'nowhere' is not a folder"),
        (("doctor", "--data", "nowhere"), "data: 'nowhere' is neither"),
        (("doctor", tmp_path / "m.yaml", "--data", "demo"), "doctor: give a matrix file, or --data"),
    ]:
        done = invoke(*arguments)
        assert done.exit_code == 2 and wanted in done.stderr and ONE_LINE.fullmatch(done.stderr), (arguments, done)
