"""Signs of life of a process that answers: which phase it is in, how far, and whether it moves.

A thread looks where the others are, and whether they get what they wait for. As long as one of them moves, the process
is at work, however long a download or an answer takes; one that waits for a peer that will never come stands still, and
the runner learns where.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from finepruner_lmms.tether import end_with_parent

VARIABLE = "FINEPRUNER_HEARTBEAT"
"""The folder in which each process of a launch writes `rank-<n>.json`."""
Phase = Literal["start", "download", "load", "index", "answer", "score"]
_LOOK, _WRITE = 0.5, 2.0  # seconds
_COLLECTS = sys.version_info < (3, 11, 8) or sys.version_info[:3] == (3, 12, 0)
_IDLE = ("heartbeat", "heartbeats", "parent")


class Heartbeat:
    """Of one process; written every few seconds, and when the phase changes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._state: dict[str, Any] = {
            "pid": os.getpid(),
            "phase": "start",
            "moves": 0,
            "where": "",
            "done": 0,
            "total": 0,
        }
        self._seen: Any = None
        self._lock = threading.Lock()
        self._written = 0.0

    @property
    def phase(self) -> Phase | None:
        """What it is at; None while it only waits for other processes."""
        return self._state["phase"]

    def start(self) -> None:
        """Begin to beat."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def tell(self, **facts: Any) -> None:
        """Another phase, or another number of answers."""
        changed = "phase" in facts and facts["phase"] != self._state["phase"]
        self._state.update(facts)
        if changed:
            self._write()

    def _beat(self) -> None:
        while True:
            self._look()
            if time.monotonic() - self._written >= _WRITE:
                self._write()
            time.sleep(_LOOK)

    def _look(self) -> None:
        frames = _frames()
        threads = [thread for thread in threading.enumerate() if not _is_idle(thread)]
        # a library's own threads download and read; in a collective, they wake for nothing while questions are answered
        own = self._state["phase"] in ("answer", "score")
        woken = _woken([thread.native_id for thread in threads] if own else None)
        seen = [_place(frames.get(thread.ident or 0)) for thread in threads], woken
        if seen != self._seen and self._state["phase"]:
            self._seen = seen
            self._state["moves"] += 1
        main = frames.get(threading.main_thread().ident or 0)
        self._state["where"] = "" if main is None else _where(main)

    def _write(self) -> None:
        with self._lock:
            self._written = time.monotonic()
            try:
                partial = self._file.with_name(f".{self._file.name}.{os.getpid()}")
                partial.write_text(
                    json.dumps(self._state), encoding="utf-8"
                )  # not synced: it is worth nothing tomorrow
                partial.replace(self._file)
            except FileNotFoundError:
                if not self._file.parent.is_dir():  # the output was removed: nothing that is computed could be kept
                    os._exit(1)
            except OSError:  # a full disk: the runner sees that nothing comes
                return


def _frames() -> dict[int, FrameType]:
    """Where each thread is. Python before 3.11.8 waits for ever if it collects garbage meanwhile (gh-106883)."""
    if not _COLLECTS or not gc.isenabled():
        return sys._current_frames()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        gc.enable()


def _is_idle(thread: threading.Thread) -> bool:
    return thread.name in _IDLE or type(thread).__name__ == "TMonitor"  # that of tqdm wakes every ten seconds


def _woken(threads: Sequence[int | None] | None) -> int:
    """How often threads of this process, or all of them, have waited for something and got it; 0 where nobody counts.

    One that waits in vain does not, whether it sleeps or spins; one that receives a file, a byte at a time, does.
    """
    found = 0
    tasks = Path("/proc/self/task")
    names = [str(number) for number in threads] if threads is not None else _names(tasks)
    for name in names:
        if threads is None and name == str(threading.get_native_id()):
            continue  # this thread itself
        with suppress(OSError, ValueError):  # it ended meanwhile
            for line in (tasks / name / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    found += int(line.split()[1])
    return found


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []


def _place(frame: FrameType | None) -> tuple[tuple[str, int], ...]:
    """The stack of a thread, to be compared with that of a moment later."""
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def _where(frame: FrameType) -> str:
    """For people: `generate.py:120 generate`."""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


_current: Heartbeat | None = None


def begin() -> None:
    """Begin to beat if a runner asked for it, once; the process then ends with its parent, too."""
    global _current
    folder = os.environ.get(VARIABLE)
    if not folder or _current is not None:
        return
    end_with_parent()
    with suppress(OSError):
        _current = Heartbeat(Path(folder) / f"rank-{os.environ.get('RANK', '0')}.json")
        _current.start()


def phase(name: Phase | None) -> None:
    """Say which phase begins; nothing where nobody asked."""
    if _current is not None:
        _current.tell(phase=name)


@contextmanager
def aside() -> Iterator[None]:
    """While the block runs other processes are at work, whose signs count; this one only waits for them."""
    before = None if _current is None else _current.phase
    phase(None)
    try:
        yield
    finally:
        phase(before)


def progress(done: int, total: int) -> None:
    """Say how many questions are answered."""
    if _current is not None:
        _current.tell(phase="answer", done=done, total=total)
