"""The store: what counts as done, and what survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from finepruner_lmms.matrix.store import Store, StoreError, begin_attempt, check_result, write_error, write_result

CELL = {"id": "abc", "folder": "pope-vanilla-abc", "task": "pope", "row": 0, "label": "pope · vanilla"}
RESULT = {
    "id": "abc",
    "metrics": {"pope_f1_mean,none": 0.9},
    "percent": 90.0,
    "standard_error": 1.0,
    "answered": 2,
    "expected": 2,
    "seconds": 1.0,
    "spec": {"task": "pope"},
}
SAMPLES = [{"doc_id": 0, "answer": "yes"}, {"doc_id": 1, "answer": "no"}]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "run")


def finish(store: Store, **changes) -> None:
    folder = store.cell_dir(CELL)
    begin_attempt(folder, "1")
    write_result(folder, RESULT | changes, SAMPLES)


def test_a_valid_result_is_done(store):
    assert store.state(CELL, live=False).name == "missing"
    finish(store)
    state = store.state(CELL, live=False)
    assert state.name == "done" and state.result is not None and state.result["percent"] == 90.0


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"metrics": {"pope_f1_mean,none": "N/A"}}, "'N/A', not a number"),
        ({"metrics": {"pope_f1_mean,none": float("nan")}}, "nan, not a number"),
        ({"metrics": {"pope_f1_mean,none": True}}, "True, not a number"),
        ({"metrics": {}}, "None, not a number"),
        ({"percent": None}, "percent is None"),
        ({"answered": 1}, "1 of 2 questions"),
        ({"answered": 0, "expected": 0}, "0 of 0 questions"),
        ({"id": "other"}, "of 'other'"),
    ],
)
def test_an_invalid_result_is_not_done(store, changes, reason):
    finish(store, **changes)
    state = store.state(CELL, live=False)
    assert state.name == "failed" and reason in state.reason


def test_a_torn_or_tampered_result_is_not_done(store):
    finish(store)
    folder = store.cell_dir(CELL)
    whole = (folder / "result.json").read_text()
    (folder / "result.json").write_text(whole[: len(whole) // 2])
    assert check_result(folder, CELL) == ("result.json is not readable as JSON", None)
    (folder / "result.json").write_text(whole)
    (folder / "samples.jsonl").write_text("")
    problem, result = check_result(folder, CELL)
    assert result is None and "samples.jsonl" in problem


def test_a_new_attempt_keeps_the_evidence_of_the_old_one(store):
    folder = store.cell_dir(CELL)
    begin_attempt(folder, "1")
    write_error(folder, "ValueError", "no such picture")
    assert store.state(CELL, live=False).reason == "ValueError: no such picture"
    begin_attempt(folder, "2")
    assert json.loads((folder / "attempt-1" / "error.json").read_text())["message"] == "no such picture"
    assert store.state(CELL, live=True).name == "running"
    assert store.state(CELL, live=False).name == "missing"  # cut off: whoever ran it is gone
    write_result(folder, RESULT, SAMPLES)
    assert store.state(CELL, live=False).name == "done"


def test_results_of_other_settings_are_counted_not_shown(store):
    finish(store)
    assert store.others([CELL]) == 0
    assert store.others([CELL | {"folder": "pope-vanilla-def"}]) == 1


def test_one_run_at_a_time_and_no_stale_lock(store):
    assert not store.is_live()
    code = (
        "import sys, time; from pathlib import Path; from finepruner_lmms.matrix.store import Store\n"
        "with Store(Path(sys.argv[1])).lock():\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert store.is_live()
        with pytest.raises(StoreError, match=f"in use by process {holder.pid} on "), store.lock():
            pass
    finally:
        holder.kill()
        holder.wait()
    assert not store.is_live()
    with store.lock():
        assert f"process {os.getpid()} on " in (store.root / ".lock").read_text()


def test_an_output_that_is_none(tmp_path):
    with pytest.raises(StoreError, match="is not a folder"):
        Store(tmp_path / "nowhere").matrix()
    with pytest.raises(StoreError, match="nothing was run into it"):
        Store(tmp_path).matrix()
