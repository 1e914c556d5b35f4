"""Attempts at a cell: who works on it now, how each attempt ended, and why the last one failed.

An attempt is a claim (`finepruner_lmms.claims`) on the cell's directory, `attempt-<n>/`: any number of workers, on any
machines, may go through the same cells, and each cell is one's alone. One that has not ended and whose owner is gone
was interrupted; the next attempt goes on with its answers.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from finepruner_lmms import claims
from finepruner_lmms.claims import Claim, Owner
from finepruner_lmms.errors import Failure
from finepruner_lmms.files import read_object, write_json
from finepruner_lmms.matrix.aside import make_way, put_away
from finepruner_lmms.matrix.squeue import job_is_alive

PREFIX = "attempt"
claims.ask_scheduler(job_is_alive)


class Held(Failure, RuntimeError):
    """Another process works on the cell."""


def last_attempt(folder: Path) -> int:
    """The number of the latest attempt at the cell in `folder`; 0 before the first."""
    return claims.last(folder, PREFIX)


def holder(folder: Path) -> Owner | None:
    """Who works on the cell now."""
    return claims.holder(folder, PREFIX)


def failures(folder: Path) -> int:
    """How many attempts at the cell in `folder` failed, or ended with their worker."""
    return sum(claims.ended(attempt) in ("failed", "died") for attempt in folder.glob(f"{PREFIX}-*"))


def take(folder: Path, attempts: int) -> Claim | None:
    """Claim a cell for the attempt after `attempts`; None if somebody made that one, whatever came of it."""
    make_way(folder)
    if last_attempt(folder) != attempts or (claim := claims.take(folder, PREFIX)) is None:
        return None
    if claim.number == attempts + 1:
        return claim
    claim.end("released")
    return None


def failed_since(folder: Path, began: float) -> bool:
    """Whether the latest attempt at the cell in `folder` failed at or after the time `began`, in seconds of 1970."""
    found = read_object(folder / f"{PREFIX}-{last_attempt(folder)}" / "ended.json") or {}
    at = found.get("at")
    return found.get("how") == "failed" and isinstance(at, int | float) and at >= began


def lost_since(folder: Path, began: float) -> int:
    """How many attempts at the cell, which is not done, came to nothing since `began`.

    Those whose process died, and those that say they are done though what they wrote is not to be used. Interrupted
    ones do not count: their answers are kept.
    """
    lost = 0
    for number in range(last_attempt(folder), 0, -1):
        attempt = folder / f"{PREFIX}-{number}"
        try:
            if (attempt / "owner.json").stat().st_mtime < began:
                break
        except OSError:
            break
        lost += claims.ended(attempt) in (None, "died", "done", "answered")
    return lost


def begin(claim: Claim, launch: str) -> Path:
    """Write down that an attempt begins, and put away what an earlier one left; returns its folder."""
    folder = claim.folder.parent
    earlier = folder / f"{PREFIX}-{claim.number - 1}"
    put_away(folder, earlier if earlier.is_dir() else claim.folder)
    status = {"state": "running", "attempt": claim.number, "host": socket.gethostname(), "pid": os.getpid()}
    write_json(folder / "status.json", status | {"launch": launch})
    return claim.folder


def begin_attempt(folder: Path, launch: str) -> Path:
    """Claim a cell, whatever was tried before, and begin; returns `attempt-<n>`. `Held` if another process has it."""
    make_way(folder)
    claim = claims.take(folder, PREFIX)
    if claim is None:
        raise Held(f"{folder.name}: held by {holder(folder) or 'another process'}")
    return begin(claim, launch)


def end_attempt(folder: Path, state: str) -> None:
    """Write down how the latest attempt ended: "done", "answered", "failed", "died" or "interrupted"."""
    claims.end(folder / f"{PREFIX}-{last_attempt(folder)}", state)
    if (status := read_object(folder / "status.json")) is not None:  # a process may fail before the first has begun
        write_json(folder / "status.json", status | {"state": state})


def end_abandoned(folder: Path, how: str) -> bool:
    """Say how the latest attempt ended whose process is gone; False if somebody works on the cell, as another run may.

    What is ended is the attempt that was looked at, so one that begins meanwhile is not touched.
    """
    number = last_attempt(folder)
    if holder(folder) is not None:
        return False
    if number:
        claims.end(folder / f"{PREFIX}-{number}", how)
    return True


def write_error(folder: Path, error: str, message: str, details: str = "", attempt: int | None = None) -> None:
    """Say why an attempt failed. Of several processes that fail, the first says it: the others fail because of it.

    `attempt` is the one that failed, the latest if None. Where another process has taken the cell over since, it is
    that one's to say what comes of it.
    """
    if attempt is not None and last_attempt(folder) != attempt:
        return
    make_way(folder)
    if _first_to_fail(folder):
        write_json(folder / "error.json", {"error": error, "message": message, "details": details})
    end_attempt(folder, "failed")


def _first_to_fail(folder: Path) -> bool:
    attempt = folder / f"{PREFIX}-{last_attempt(folder)}"
    if not attempt.is_dir():
        return True
    try:
        with (attempt / "failed.json").open("x", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "at": time.time()}, file)
    except FileExistsError:
        return not (folder / "error.json").exists()  # whoever was first may have died before it could say why
    return True
