"""How a run lives with what goes wrong: deaths, silence, processes that fail alone, memory that is full.

The worker is a few lines of Python in place of `accelerate launch`: what it does wrong is the test's choice.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from studies import cell

from finepruner_lmms import claims
from finepruner_lmms.matrix import launch, modes
from finepruner_lmms.matrix.plan import Plan, PlannedCell
from finepruner_lmms.matrix.runner import LaunchError, run_cells
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.matrix.store import Store, StoreError

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from finepruner_lmms.matrix.attempts import begin_attempt, write_error
from finepruner_lmms.matrix.results import write_result

plan = json.loads(Path(sys.argv[1]).read_text())
events = Path(sys.argv[1]).with_name("events.jsonl").open("a", buffering=1)
say = lambda event, **facts: events.write(json.dumps({"event": event, **facts}) + "\\n")

def done(cell):
    result = {"id": cell["id"], "metrics": {"exact_match,none": 0.5}, "percent": 50.0, "standard_error": 1.0}
    result |= {"answered": 1, "expected": 1, "seconds": 1.0, "spec": {"task": "gqa"}}
    write_result(Path(cell["path"]), result, [{"doc_id": 0}])
    say("done", cell=cell["id"])

say("loading")
for cell in plan["cells"]:
    begin_attempt(Path(cell["path"]), plan["launch"])
    say("start", cell=cell["id"])
    if cell["id"] == "bad":
        BAD
    done(cell)
say("end")
"""
FILE = MatrixFile.model_validate(
    {"name": "n", "tasks": ["gqa"], "methods": ["vanilla"], "launch": {"processes": 1, "timeout_minutes": 5}}
)
SILENT = """
import json, subprocess, sys, time
from pathlib import Path

with Path(sys.argv[1]).with_name("events.jsonl").open("a", buffering=1) as events:
    for cell in json.loads(Path(sys.argv[1]).read_text())["cells"]:
        events.write(json.dumps({"event": "start", "cell": cell["id"]}) + "\\n")
        if cell["id"] == "bad":
            BAD
        events.write(json.dumps({"event": "failed", "cell": cell["id"]}) + "\\n")
"""


class Display:
    """Keeps what a user would see."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[tuple[str, str, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def cell_started(self, label: str, worker: int = 0) -> None: ...

    def cell_progress(self, done: int, total: int, worker: int = 0, together: int = 1) -> None: ...

    def expect(self, cells, seconds) -> None: ...

    def tick(self) -> None: ...

    def cell_ended(self, cell, state: str, text: str, worker: int = 0) -> None:
        self.ended.append((cell.id, state, text))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "run")


def run(store: Store, monkeypatch, bad: str, worker: str = WORKER, minutes: float = 5) -> Display:
    """Run the cells first, bad and last with a worker that does `bad` in the second."""
    script = store.root.parent / "worker.py"
    script.write_text(worker.replace("BAD", bad))
    monkeypatch.setattr(modes, "count_gpus", lambda: 0)
    monkeypatch.setattr(
        launch, "_command", lambda _folder, _slot, _plan, file: [sys.executable, str(script), str(file)]
    )
    display = Display()
    cells = [cell(name, "gqa") for name in ("first", "bad", "last")]
    patient = FILE.launch.model_copy(update={"timeout_minutes": minutes})
    run_cells(store, FILE.model_copy(update={"launch": patient}), cells, display)
    return display


def launches(store: Store) -> int:
    return len(list(store.root.glob("launches/*")))


def test_a_cell_in_which_the_worker_dies_twice_is_given_up_and_the_others_are_done(store, monkeypatch):
    display = run(store, monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    assert [(name, state) for name, state, _ in display.ended] == [
        ("first", "done"), ("bad", "failed"), ("last", "done"),
    ]  # fmt: skip
    reason = display.ended[1][2]
    assert reason.startswith("the worker ended in the middle of the cell: killed by SIGKILL")
    assert launches(store) == 3 and any("starting again" in note for note in display.notes)
    error = json.loads((store.root / "cells" / "gqa-bad" / "error.json").read_text())
    assert error["error"] == "WorkerDied" and error["message"] == reason


@pytest.mark.slow
def test_a_worker_that_says_nothing_is_ended_with_all_it_started(store, monkeypatch, tmp_path):
    pids = tmp_path / "pids"
    child = f"import os, time; open({str(pids)!r}, 'a').write(str(os.getpid()) + chr(10)); time.sleep(600)"
    display = run(store, monkeypatch, f"subprocess.run([sys.executable, '-c', {child!r}])", SILENT, minutes=0.05)
    assert display.ended[1][1:] == ("failed", "no movement for 0.05 minutes while starting (launch.timeout_minutes)")
    started = pids.read_text().split()
    assert started
    deadline = time.monotonic() + 10
    while any(_alive(int(pid)) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(int(pid)) for pid in started)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_another_process_than_the_first_fails_and_its_reason_is_kept(store, monkeypatch):
    """The first says nothing more: it waits for the others until it is ended."""
    bad = "write_error(Path(cell['path']), 'ValueError', 'document 7: its image cannot be read'); sys.exit(1)"
    display = run(store, monkeypatch, bad)
    assert display.ended[1] == ("bad", "failed", "ValueError: document 7: its image cannot be read")
    assert launches(store) == 2  # it is not tried again: the same would happen
    assert [name for name, state, _ in display.ended if state == "done"] == ["first", "last"]


def test_the_reason_in_the_log_of_another_process_is_shown(store, monkeypatch):
    display = run(store, monkeypatch, "print('[rank1]: torch.OutOfMemoryError: CUDA out of memory'); sys.exit(1)")
    assert "exit status 1; [rank1]: torch.OutOfMemoryError: CUDA out of memory" in display.ended[1][2]


@pytest.mark.parametrize(
    "log, reason",
    [
        ("E1 failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: p\n=====\n", "rank 1 was killed by SIGKILL"),
        ("ValueError: no\nE1 failed (exitcode: 1) local_rank: 0\n====\n", "ValueError: no"),
        ("100%\n\n=====\n", "100%"),
        ("", "the log is empty"),
    ],
)
def test_the_last_error_of_a_log_says_something(tmp_path, log, reason):
    (tmp_path / "log.txt").write_text(log)
    assert launch.last_error(tmp_path / "log.txt") == reason


def test_a_worker_that_cannot_start_is_not_tried_again_but_for_its_port(store, monkeypatch):
    with pytest.raises(LaunchError, match="the worker could not start: ValueError: pretrained: no weights"):
        run(store, monkeypatch, "", "raise ValueError('pretrained: no weights')")
    assert launches(store) == 1
    with pytest.raises(LaunchError, match="EADDRINUSE"):
        run(store, monkeypatch, "", "raise RuntimeError('EADDRINUSE: the port is taken')")
    assert launches(store) == 3  # once more, on another port


# -- inside the worker ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, world_size, goes_on",
    [
        (ValueError("no such picture"), 1, True),
        (ValueError("no such picture"), 2, False),  # the others wait inside a collective
        ("OutOfMemoryError", 1, False),  # only a fresh process computes correctly after it
        ("AcceleratorError", 1, False),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_a_cell_raises_is_its_failure_and_says_whether_the_worker_goes_on(
    store, monkeypatch, error, world_size, goes_on, first
):
    import torch

    from finepruner_lmms.matrix import evaluate, worker

    if isinstance(error, str):
        kind = getattr(torch, error)
        error = kind.__new__(kind)
        error.args = ("CUDA: out of memory",)

    def fail(*_):
        raise error

    monkeypatch.setattr(evaluate, "evaluate_cell", fail)
    failing = cell("a", "gqa")
    folder = store.cell_dir(failing)
    folder.mkdir(parents=True)
    sent: list[str] = []
    events = SimpleNamespace(send=lambda event: sent.append(event.event))
    lm = SimpleNamespace(world_size=world_size, device=torch.device("cpu"), monitor_to=lambda _: None)
    planned = PlannedCell(**dict(failing), path=folder)
    plan = Plan(
        launch="1", model=failing.model, batch_size=1, data="demo", limit=None, monitor=False, submission=False,
        fan_out=1, cells=(planned,),
    )  # fmt: skip
    taken = claims.take(folder, "attempt")
    claim = taken if first else None
    assert worker._attempt(lm, None, planned, taken.number, claim, plan, events, first, None) is goes_on
    state = store.state(failing)
    assert state.name == "failed" and state.reason == f"{type(error).__name__}: {error}"
    assert sent == ["start", "failed"]


# -- what others do ---------------------------------------------------------------------------------------------------


def test_a_worker_that_ends_after_its_result_has_ended_its_cell(store, monkeypatch):
    display = run(store, monkeypatch, "say = lambda event, **facts: sys.exit(1)")
    assert [(name, state) for name, state, _ in display.ended] == [
        ("first", "done"), ("bad", "done"), ("last", "done"),
    ]  # fmt: skip


def test_a_run_in_the_same_process_is_refused_too(store):
    with (
        store.lock(),
        pytest.raises(StoreError, match=f"in use by process {os.getpid()} on "),
        Store(store.root).lock(),
    ):
        pass
