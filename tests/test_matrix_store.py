"""The store: what counts as done, and what survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from studies import IDENTITY, cell, method, study
from typer.testing import CliRunner

from finepruner_lmms.claims import holder_of
from finepruner_lmms.cli import app
from finepruner_lmms.judge.settings import JudgeServer
from finepruner_lmms.matrix.attempts import begin_attempt, end_attempt, take, write_error
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.results import check_result, read_cell, write_result
from finepruner_lmms.matrix.store import Store, StoreError

CELL = cell("abc", "pope")
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
    assert store.state(CELL).name == "missing"
    finish(store)
    state = store.state(CELL)
    assert state.name == "done" and state.result is not None and state.result.percent == 90.0


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
    state = store.state(CELL)
    assert state.name == "failed" and reason in state.reason


def test_a_torn_or_tampered_result_is_not_done(store):
    finish(store)
    folder = store.cell_dir(CELL)
    whole = (folder / "result.json").read_text()
    (folder / "result.json").write_text(whole[: len(whole) // 2])
    problem, result = check_result(folder, CELL)
    assert result is None and problem.startswith("result.json is not readable as JSON")
    (folder / "result.json").write_text(whole)
    (folder / "samples.jsonl").write_text("")
    problem, result = check_result(folder, CELL)
    assert result is None and "samples.jsonl" in problem


def test_a_new_attempt_keeps_the_evidence_of_the_old_one(store):
    folder = store.cell_dir(CELL)
    begin_attempt(folder, "1")
    write_error(folder, "ValueError", "no such picture")
    assert store.state(CELL).reason == "ValueError: no such picture"
    begin_attempt(folder, "2")
    assert json.loads((folder / "attempt-1" / "error.json").read_text())["message"] == "no such picture"
    assert store.state(CELL).name == "running"
    write_result(folder, RESULT, SAMPLES)
    assert store.state(CELL).name == "done"


def test_a_cell_that_ends_while_it_is_looked_at_is_not_called_interrupted(store, monkeypatch):
    folder = store.cell_dir(CELL)
    begin_attempt(folder, "1")

    def look_and_finish(folder, cell):
        found = read_cell(folder, cell)
        write_result(folder, RESULT, SAMPLES)
        return found

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("finepruner_lmms.matrix.store.read_cell", look_and_finish)
        assert store.state(CELL).name == "done"


def test_a_cell_that_is_taken_is_running_before_its_worker_has_written_a_word(store):
    assert take(store.cell_dir(CELL), 0) is not None
    assert store.state(CELL).name == "running" and store.state(CELL).reason.startswith("attempt 1: process ")


def test_results_of_other_settings_are_counted_not_shown(store):
    finish(store)
    assert store.others([CELL]) == 0
    assert store.others([cell("def", "pope")]) == 1


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
        assert f"process {os.getpid()} on " in holder_of(store.root / ".run")


def test_an_output_that_is_none(tmp_path):
    with pytest.raises(StoreError, match="is not a folder"):
        Store(tmp_path / "nowhere").study()
    with pytest.raises(StoreError, match="nothing was run into it"):
        Store(tmp_path).study()


def test_a_study_is_read_as_it_was_written(store):
    rows = [method("vanilla"), method("fastv", "22%", {"rows": "raw"}, layer=3)]
    cells = [cell("a", "pope"), cell("b", "pope", 1, rows[1], limit=8, submission=True, judged=True, judge="exact")]
    for judge in (None, "later", JudgeServer(url="http://host", model="m")):
        written = study(rows, cells).model_copy(update={"judge": judge})
        store.save_study(written)
        assert store.study() == written


def test_a_label_says_what_the_file_gives():
    row = method("fastv", 64, {"rows": "raw"}, layer=3)
    assert row.label == "fastv 64 layer=3" and cell("a", "pope", of=row).label == "pope · fastv 64 layer=3"
    assert method("vanilla").label == "vanilla"


OF_OLD = {"id": "a", "slug": "pope-vanilla", "row": 0, "task": "pope", "spec": {"task": "pope"}, "label": "pope"}


@pytest.mark.parametrize(
    "changes, flaw",
    [
        ({"cells": [OF_OLD]}, "matrix.json: cells.0.method is missing"),
        ({"rows": None}, "matrix.json: rows is None, not "),
        ({"num_layers": "many"}, "matrix.json: num_layers is 'many', not "),
        (None, "matrix.json is not readable as JSON"),
    ],
)
@pytest.mark.parametrize("command", ["status", "table", "report", "judge"])
def test_a_study_of_another_shape_is_named_with_how_to_go_on(store, changes, flaw, command):
    store.save_study(study([method("vanilla")], [CELL]))
    file = store.root / "matrix.json"
    file.write_text("{" if changes is None else json.dumps(json.loads(file.read_text()) | changes))
    (store.root / "matrix.copy.json").unlink()
    said = CliRunner().invoke(app, [command, str(store.root)])
    assert said.exit_code == 2 and flaw in said.stderr and "writes it again, and no result is lost" in said.stderr
    assert "Traceback" not in said.stderr


# -- damage, and why a stored result does not count -------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, reason",
    [
        ("[]", "result.json is not readable as JSON"),
        ("{}", "result.json: schema_version is missing"),
        (RESULT | {"schema_version": 2, "samples_bytes": 1, "metrics": [1]}, "result.json: metrics is [1], not a "),
        (RESULT | {"schema_version": 2, "samples_bytes": 1, "metrics": None}, "result.json: metrics is None, not a "),
        (RESULT | {"schema_version": 2, "samples_bytes": 1, "answered": "2x"}, "result.json: answered is '2x', not "),
        (RESULT | {"schema_version": 2, "samples_bytes": 1, "spec": "pope"}, "result.json: spec is 'pope', not "),
        (
            RESULT | {"schema_version": 2, "samples_bytes": 1, "judge": {"models": 3}},
            "result.json: judge.name is missing",
        ),
        (RESULT | {"schema_version": 1, "samples_bytes": 1}, "result.json is of 'abc', schema 1"),
    ],
)
def test_a_result_of_another_shape_is_damage_that_is_named(store, content, reason):
    finish(store)
    text = content if isinstance(content, str) else json.dumps(content)
    (store.cell_dir(CELL) / "result.json").write_text(text)
    state = store.state(CELL)
    assert state.name == "failed" and state.reason.startswith(reason)


@pytest.mark.parametrize("name", ["status.json", "error.json"])
def test_a_status_of_another_shape_is_damage_that_is_named(store, name):
    begin_attempt(store.cell_dir(CELL), "1")
    (store.cell_dir(CELL) / name).write_text('{"state": "running", "error": "E"}')
    state = store.state(CELL)
    assert state.name == "failed" and state.reason.startswith(f"{name}: ") and "is missing" in state.reason
    end_attempt(store.cell_dir(CELL), "interrupted")
    begin_attempt(store.cell_dir(CELL), "2")  # and the next run goes on


def planned(**changes) -> Cell:
    identity = IDENTITY.model_copy(update=changes)
    return cell(identity.id, "pope", slug="pope-fastv", identity=identity)


def finish_cell(store: Store, done: Cell) -> None:
    begin_attempt(store.cell_dir(done), "1")
    write_result(store.cell_dir(done), RESULT | {"id": done.id, "spec": done.spec()}, SAMPLES)


def test_a_cell_that_is_named_in_other_words_is_the_same(store):
    finish_cell(store, planned())
    renamed = planned().model_copy(update={"slug": "pope-fastv-layer-2"})
    assert store.state(renamed).name == "done" and store.others([renamed]) == 0


def test_the_plan_says_what_changed_since_the_nearest_result(store):
    finish_cell(store, planned())
    finish_cell(store, planned(dtype="float32", data="x"))

    def reason(**changes) -> str | None:
        wanted = planned(**changes)
        return store.explain_missing([wanted]).get(wanted.id)

    since = f"(since pope-fastv-{IDENTITY.id})"
    assert reason(method={"fastv": "other"}) == f"fastv's code changed {since}"
    assert reason(libraries={"torch": "2.12.0"}) == f"torch 2.11.0 → 2.12.0 {since}"
    assert reason(dtype="float32", data="x", checkpoint="y").startswith("the checkpoint changed (since pope-fastv-")
    assert reason(dtype="bfloat16", checkpoint="y") == f"dtype float16 → bfloat16; the checkpoint changed {since}"
    assert reason(settings="new") is None and reason() is None
    (store.cell_dir(planned()) / "result.json").write_text("{}")  # damage is no evidence
    assert "dtype float32" in reason(dtype="bfloat16", data="x")
