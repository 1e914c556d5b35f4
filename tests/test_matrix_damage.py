"""Damaged and forged files of an output directory: named, never shown, never a traceback, set aside and made anew."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import damages
import pytest
from damages import CELLS, DONE, KINDS, Kind, T
from pages import texts
from typer.testing import CliRunner, Result

from finepruner_lmms.cli import app
from finepruner_lmms.matrix import evidence
from finepruner_lmms.matrix.evidence import checksum
from finepruner_lmms.matrix.overview import plan_text
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.report.tables import render
from finepruner_lmms.matrix.results import check_result
from finepruner_lmms.matrix.status import status_text
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.study import to_run

PATIENCE = 60  # seconds; a fifo that is opened for reading is waited for without end


@pytest.fixture(scope="module", autouse=True)
def no_sync() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[tuple[str, str], str]]:
    """A study as it was written, and what its table says."""
    store = damages.make_store(tmp_path_factory.mktemp("whole") / "run")
    return store.root, shown(store.root)


@pytest.fixture
def store(whole, tmp_path) -> Iterator[Store]:
    shutil.copytree(whole[0], tmp_path / "run")

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    yield Store(tmp_path / "run")
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(*arguments: object) -> Result:
    said = CliRunner().invoke(app, list(map(str, arguments)))
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    return said


def shown(root: Path) -> dict[tuple[str, str], str]:
    """Each number of the table, by method and task."""
    rows = list(csv.DictReader(io.StringIO(render(leaderboard(Store(root)), "csv"))))
    return {(row["method"], task): row[task] for row in rows for task in damages.TASKS if row[task]}


def status_of(root: Path) -> str:
    store = Store(root)
    return status_text(store, store.study())


def named(one: Cell) -> tuple[str, str]:
    return one.method.method, one.task


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_damage_is_named_not_shown_set_aside_and_made_anew(store, whole, kind: Kind):
    truth, root = whole[1], store.root
    kind.do(root)
    assert kind.says in status_of(root)
    left = {pair: number for pair, number in truth.items() if pair not in map(named, kind.harms)}
    assert shown(root) == left
    if kind.harms == (T,) and kind.name.endswith("sealed"):
        compared = call("compare", root, "vanilla", "fastv 64")
        assert "GQA" not in compared.stdout and "gqa · fastv 64: not shown, damaged" in compared.output
    study = store.study()
    again = {one.id for one in to_run(study, store.states(study.cells))} & {one.id for one in DONE}
    judged = {one.id for one in kind.harms if one.task == "mmvet"}  # whose answers are whole: only the judge is asked
    assert again | judged == {one.id for one in kind.harms}
    for one in kind.harms:
        damages.finish(store.cell_dir(one), one)
    if kind.harms and kind.says != "missing":
        assert list(root.glob("**/*.damaged"))  # kept as evidence
    assert shown(root) == truth


EVERYWHERE = [kind for kind in KINDS if kind.name.startswith("selections")]
EVERYWHERE += [kind for kind in KINDS if kind.name in ("result.json: a fifo in its place", "status.json: deep lists")]


@pytest.mark.parametrize("kind", EVERYWHERE, ids=[kind.name for kind in EVERYWHERE])
def test_damage_takes_no_report_plan_or_judge_down(store, kind: Kind, monkeypatch):
    kind.do(store.root)
    assert kind.says in call("status", store.root).output and call("table", store.root).exit_code == 0
    assert call("report", store.root).exit_code == 0
    page = texts((store.root / "report.html").read_text(encoding="utf-8"))
    if kind.name.startswith("selections"):
        assert "damaged line" in page
    elif kind.harms:
        assert "not shown, damaged: result.json" in page
    assert call("judge", store.root, "--exact").exit_code == 0
    monkeypatch.setattr("finepruner_lmms.matrix.overview.estimate_study", lambda *_: None)
    text = plan_text(None, store, store.study())  # type: ignore[arg-type]
    assert f"{len(DONE) - len(kind.harms)} done" in text


def test_a_damaged_matrix_is_read_from_its_copy_and_kept_when_it_is_mended(store):
    (store.root / "matrix.json").write_text("{")
    said = call("status", store.root)
    assert said.exit_code == 0 and "matrix.copy.json, is read instead" in said.stderr
    store.save_study(damages.planned())
    assert (store.root / "matrix.json.damaged").read_text() == "{" and call("status", store.root).stderr == ""


def test_what_was_verified_is_not_read_again_until_it_is_touched(store, monkeypatch):
    read: list[str] = []
    real = evidence.read_bytes
    monkeypatch.setattr(evidence, "read_bytes", lambda path, most=None: read.append(path.name) or real(path, most))
    seen = lambda: [name for name in read if name.endswith(".jsonl")]  # noqa: E731
    call("status", store.root)
    assert seen().count("samples.jsonl") == len(DONE)  # a copy, so that all is new
    read.clear()
    call("status", store.root)
    assert seen() == []
    file = store.cell_dir(T) / "samples.jsonl"
    os.utime(file)
    call("status", store.root)
    assert seen() == ["samples.jsonl"]


def test_a_directory_that_cannot_be_written_to_is_read_all_the_same(store, whole, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(evidence, "write_bytes", refuse)
    assert shown(store.root) == whole[1]


def test_a_result_of_the_schema_before_is_verified_as_new_ones_are(store, whole):
    import json

    file = store.cell_dir(T) / "result.json"
    old = json.loads(file.read_text()) | {"schema_version": 2}
    del old["checksum"]
    file.write_text(json.dumps(old))
    assert shown(store.root) == whole[1]
    file.write_text(json.dumps(old | {"percent": 99.0}))
    assert named(T) not in shown(store.root)


def test_errors_that_an_older_version_drew_are_no_damage(store, whole):
    import json

    folder = store.cell_dir(T)
    result = json.loads((folder / "result.json").read_text())
    for schema, valid in ((3, True), (4, False)):
        old = result | {"schema_version": schema, "standard_error": 1.1 * result["standard_error"]}
        (folder / "result.json").write_text(json.dumps(old | {"checksum": checksum(old)}))
        (folder / "verified.json").unlink(missing_ok=True)
        assert (check_result(folder, T)[1] is not None) == valid


def test_a_damaged_tally_is_counted_anew(store, whole):
    before = shown(store.root)
    (file,) = store.cell_dir(T).glob("tally.npz")
    content = file.read_bytes()
    for wrong in (
        b"",
        b"{}\n",
        content[:-9],
        content.replace(b"rules", b"ruled"),
        content[:200] + b"x" + content[201:],
    ):
        file.write_bytes(wrong)
        assert shown(store.root) == before
    assert file.read_bytes() == content


def test_a_checksum_is_of_the_content_not_of_its_layout():
    value = {"b": [1.5, None], "a": "\u2028é"}
    assert checksum(value) == checksum({"checksum": "x", "a": "\u2028é", "b": [1.5, None]})
    assert checksum(value) != checksum(value | {"b": [1.5, 0]})


def test_there_are_more_than_75_kinds_and_every_cell_is_done_without_them(whole):
    assert len(KINDS) >= 75 and len(whole[1]) == len(DONE) == len(CELLS) - 3
