"""One holder at a time: among processes, among machines, after deaths, and where the file system cannot lock."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finepruner_lmms import claims
from finepruner_lmms.claims import Locked, Owner, holder, is_locked, lock, take

TAKE = """
import sys, time
from pathlib import Path
from finepruner_lmms.claims import take
claim = take(Path(sys.argv[1]), "attempt")
print(0 if claim is None else claim.number, flush=True)
time.sleep(600)
"""


def taker(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TAKE, str(folder)], stdout=subprocess.PIPE, text=True)


def elsewhere(folder: Path, **changes) -> Path:
    """A claim that a process of another machine made."""
    claim = folder / f"attempt-{claims.last(folder, 'attempt') + 1}"
    claim.mkdir(parents=True)
    owner = replace(Owner.this(), host="node7", born="another-boot/pid:[1]/77", **changes)
    (claim / "owner.json").write_text(json.dumps(asdict(owner)))
    (claim / "heartbeat").touch()
    return claim


def test_whoever_was_taken_over_does_not_say_how_the_attempt_of_another_ended(tmp_path):
    from finepruner_lmms.matrix.attempts import write_error

    mine = take(tmp_path, "attempt")
    theirs = elsewhere(tmp_path)
    write_error(tmp_path, "RuntimeError", "late", attempt=mine.number)
    assert claims.ended(theirs) is None and not (tmp_path / "error.json").exists()
    write_error(tmp_path, "RuntimeError", "theirs", attempt=2)
    assert claims.ended(theirs) == "failed" and (tmp_path / "error.json").exists()


@pytest.mark.slow
def test_of_processes_that_come_together_one_gets_it_and_a_death_frees_it(tmp_path):
    several = [taker(tmp_path) for _ in range(4)]
    try:
        numbers = [process.stdout.readline().strip() for process in several]
        assert sorted(numbers) == ["0", "0", "0", "1"]
        owner = several[numbers.index("1")]
        assert holder(tmp_path, "attempt").pid == owner.pid and take(tmp_path, "attempt") is None
        owner.send_signal(signal.SIGSTOP)  # it still holds what it has
        assert take(tmp_path, "attempt") is None
        owner.kill()
        owner.wait()
        claim = take(tmp_path, "attempt")
        assert claim is not None and claim.number == 2 and claim.counts
    finally:
        for process in several:
            process.kill()
            process.wait()


def test_what_was_let_go_can_be_taken_and_says_how_it_ended(tmp_path):
    first = take(tmp_path, "attempt")
    assert take(tmp_path, "attempt") is None and holder(tmp_path, "attempt") == first.owner
    first.end("failed")
    first.end("done")  # what was said first stays
    assert claims.ended(first.folder) == "failed" and holder(tmp_path, "attempt") is None
    assert take(tmp_path, "attempt").number == 2 and not first.counts


def test_another_machine_holds_what_it_has_while_its_heart_beats(tmp_path):
    claim = elsewhere(tmp_path)
    assert holder(tmp_path, "attempt").host == "node7" and take(tmp_path, "attempt") is None
    silent = time.time() - claims.SILENT - 1
    os.utime(claim / "heartbeat", (silent, silent))
    assert holder(tmp_path, "attempt") is None and take(tmp_path, "attempt").number == 2


def test_a_number_that_another_process_has_now_is_not_its_owner(tmp_path):
    claim = take(tmp_path, "attempt")
    written = asdict(claim.owner)
    (claim.folder / "owner.json").write_text(json.dumps(written | {"born": written["born"] + "1"}))
    assert holder(tmp_path, "attempt") is None


def test_a_job_that_the_scheduler_no_longer_knows_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_schedulers", [])
    elsewhere(tmp_path, job="8_1")
    claims.ask_scheduler(lambda job: None)  # does not know
    assert holder(tmp_path, "attempt").job == "8_1"
    claims.ask_scheduler(lambda job: job != "8_1")
    assert holder(tmp_path, "attempt") is None


def test_flock_has_no_part_in_it(tmp_path, monkeypatch):
    """On some file systems it fails for all; on others it succeeds for all, and two would work at once."""

    def fail(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")
        with pytest.raises(Locked, match=f"held by process {os.getpid()} on "), lock(tmp_path / "lock"):
            pass
    assert not is_locked(tmp_path / "lock")


def test_asking_whether_something_is_locked_keeps_nobody_from_locking_it(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert not is_locked(tmp_path / "lock") and sorted(tmp_path.rglob("*")) == before


def test_a_lock_is_used_often_and_leaves_one_claim(tmp_path):
    (tmp_path / "lock").touch()  # as an earlier version left it
    for _ in range(5):
        with lock(tmp_path / "lock"):
            pass
    assert len(list((tmp_path / "lock").iterdir())) == 1


def test_claims_of_earlier_versions_count_for_their_numbers_alone(tmp_path):
    (tmp_path / "attempt-3").mkdir()
    assert take(tmp_path, "attempt").number == 4


def test_what_was_being_claimed_when_the_process_ended_holds_nothing(tmp_path):
    """The folder is filled elsewhere and renamed, so that no claim is ever without its owner."""
    (tmp_path / ".attempt-half").mkdir()
    assert take(tmp_path, "attempt").number == 1
