"""Attempts at a cell: `attempt-<n>/` and `status.json`, and why the last one failed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from finepruner_lmms.files import read_object, write_json
from finepruner_lmms.matrix.aside import make_way, put_away


def begin_attempt(folder: Path, launch: str) -> Path:
    """Claim a cell for an attempt: writes its status, puts an earlier failure away, returns `attempt-<n>`."""
    make_way(folder)
    number = 1 + max((int(d.name[8:]) for d in folder.glob("attempt-*") if d.name[8:].isdecimal()), default=0)
    attempt = folder / f"attempt-{number}"
    attempt.mkdir()
    before = attempt.with_name(f"attempt-{number - 1}")
    put_away(folder, before if before.is_dir() else attempt)
    status = {"state": "running", "attempt": number, "host": socket.gethostname(), "pid": os.getpid(), "launch": launch}
    write_json(folder / "status.json", status)
    return attempt


def end_attempt(folder: Path, state: str) -> None:
    """Write down how the attempt ended: "done" or "failed"."""
    if (status := read_object(folder / "status.json")) is not None:  # a process may fail before the first has begun
        write_json(folder / "status.json", status | {"state": state})


def write_error(folder: Path, error: str, message: str, details: str = "") -> None:
    """Say why an attempt failed."""
    make_way(folder)
    write_json(folder / "error.json", {"error": error, "message": message, "details": details})
    end_attempt(folder, "failed")
