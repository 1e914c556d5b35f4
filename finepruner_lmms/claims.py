"""Who works on what: claims that processes on any machines make on a folder, and of which one at a time holds.

    <folder>/<prefix>-<n>/
      owner.json      who made the claim: host, process, job
      heartbeat       touched while the owner lives; what other machines go by
      ended.json      how it ended; a claim that has not ended is held while its owner lives

The claim with the highest number counts. A new one is a folder that is filled elsewhere and renamed to the next number,
which one process alone can do on a local disk and over a network. `flock` has no part in it: on some shared file
systems it succeeds for everybody, on others for nobody.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from finepruner_lmms.errors import Failure
from finepruner_lmms.files import read_object, write_json

BEAT = 10.0
"""Seconds between two touches of a heartbeat."""
SILENT = 180.0
"""Seconds without one after which an owner on another machine counts as gone. File systems may show a touch a minute
late."""

_schedulers: list[Callable[[str], bool | None]] = []


def ask_scheduler(is_alive: Callable[[str], bool | None]) -> None:
    """Ask `is_alive` whether a job is there, whose processes cannot be seen from here; None where it does not know."""
    if is_alive not in _schedulers:
        _schedulers.append(is_alive)


class Locked(Failure, RuntimeError):
    """Something is held by another process; `holder` says by which."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path, self.holder = path, holder
        super().__init__(f"{path}: held by {holder}")


@dataclass(frozen=True)
class Owner:
    """A process. `born` tells it from an earlier one with the same number: machine, namespace and start."""

    host: str
    pid: int
    born: str
    job: str | None = None
    token: str = ""

    @classmethod
    def this(cls) -> Owner:
        """The process that asks."""
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()) or "", this_job(), secrets.token_hex(8))

    def __str__(self) -> str:
        job = (self.job or "").split(":")
        return f"process {self.pid} on {self.host}{f', job {job[2]}' if len(job) == 4 else ''}"

    def lives(self) -> bool | None:
        """Whether the process is there; None where that cannot be seen from here."""
        if self.born.rpartition("/")[0] == _machine():
            return _born(self.pid) == self.born
        return False if self.job and any(is_alive(self.job) is False for is_alive in _schedulers) else None


def this_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The job of SLURM's that this process belongs to, `slurm:<cluster>:<id>:<starts before>`; None outside of one.

    A job that was put back into the queue keeps its id, and what an earlier start of it had claimed is nobody's.
    """
    number = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    job = "_".join(filter(None, number)) if all(number) else environment.get("SLURM_JOB_ID")
    if not job:
        return None
    cluster, restarts = environment.get("SLURM_CLUSTER_NAME", ""), environment.get("SLURM_RESTART_COUNT", "0")
    return f"slurm:{cluster}:{job}:{restarts}"


@cache
def _machine() -> str:
    """This boot of this machine, and its namespace of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """Machine and start of a process; None if there is none, or only what is left of one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        import psutil  # not Linux

        return f"{_machine()}/{psutil.Process(pid).create_time()}" if psutil.pid_exists(pid) else None
    return None if fields[0] in "ZX" else f"{_machine()}/{fields[19]}"


def name_of_this() -> str:
    """This process, in a word that `is_there` understands on the same machine."""
    return f"{os.getpid()}@{_born(os.getpid())}"


def is_there(name: str) -> bool:
    """Whether the process that gave itself this name is still there."""
    pid, _, born = name.partition("@")
    return pid.isdecimal() and _born(int(pid)) == born


@dataclass(frozen=True)
class Claim:
    """A claim that this process made."""

    folder: Path
    owner: Owner

    @property
    def number(self) -> int:
        """Its place in the order of claims."""
        return int(self.folder.name.rpartition("-")[2])

    @property
    def counts(self) -> bool:
        """Whether nobody took over in the meantime, having seen no sign of life of this process."""
        return last(self.folder.parent, self.folder.name.rpartition("-")[0]) == self.number

    def end(self, how: str) -> None:
        """Let go, and say how it ended."""
        end(self.folder, how)


def end(claim: Path, how: str) -> None:
    """Say how a claim ended whose owner can no longer; what was said first stays."""
    _HEART.forget(claim)
    if claim.is_dir() and not (claim / "ended.json").exists():
        write_json(claim / "ended.json", {"how": how, "at": time.time()})


def last(folder: Path, prefix: str) -> int:
    """The number of the claim that counts; 0 without any."""
    start = f"{prefix}-"
    try:
        names = [entry.name[len(start) :] for entry in os.scandir(folder) if entry.name.startswith(start)]
    except OSError:
        return 0
    return max((int(name) for name in names if name.isdecimal()), default=0)


def take(folder: Path, prefix: str) -> Claim | None:
    """A claim of this process on `folder`, which is made if it is not there; None if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    number = last(folder, prefix)
    if number and holder(folder, prefix) is not None:
        return None
    owner = Owner.this()
    filled = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=folder))
    try:
        filled.chmod(0o755)
        write_json(filled / "owner.json", asdict(owner))
        (filled / "heartbeat").touch()
        target = folder / f"{prefix}-{number + 1}"
        try:
            filled.rename(target)  # fails where a claim is, since that is never empty
        except OSError:
            if not target.is_dir():
                raise
            return None
    finally:
        shutil.rmtree(filled, ignore_errors=True)
    _HEART.remember(target)
    return Claim(target, owner)


def holder(folder: Path, prefix: str) -> Owner | None:
    """Who holds the claim that counts; None if nobody does."""
    number = last(folder, prefix)
    if not number:
        return None
    claim = folder / f"{prefix}-{number}"
    if (claim / "ended.json").exists() or (owner := owner_of(claim)) is None:
        return None
    alive = owner.lives()
    if alive is None:
        alive = _age(claim / "heartbeat") < SILENT
    return owner if alive else None


def owner_of(claim: Path) -> Owner | None:
    """Who made a claim; None where that is not written, as in one of an earlier version."""
    written = read_object(claim / "owner.json")
    try:
        return None if written is None else Owner(**written)
    except TypeError:
        return None


def ended(claim: Path) -> str | None:
    """How a claim ended; None if it has not, or nobody could say."""
    found = read_object(claim / "ended.json")
    return None if found is None else str(found.get("how"))


def _age(file: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system, which all machines share."""
    try:
        with file.open("rb") as opened:  # opening asks a network file system for the latest
            touched = os.fstat(opened.fileno()).st_mtime
    except OSError:
        return SILENT
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".now-") as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:  # not ours to write
        now = time.time()
    return now - touched


class _Heart:
    """One thread that touches the heartbeats of all claims of this process."""

    def __init__(self) -> None:
        self._claims: set[Path] = set()
        self._lock = threading.Lock()
        self._pid = 0

    def remember(self, claim: Path) -> None:
        with self._lock:
            if self._pid != os.getpid():  # the first, or the first after a fork
                self._claims.clear()
                self._pid = os.getpid()
                threading.Thread(target=self._beat, name="heartbeats", daemon=True).start()
            self._claims.add(claim)

    def forget(self, claim: Path) -> None:
        with self._lock:
            self._claims.discard(claim)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                claims = list(self._claims)
            for claim in claims:
                with suppress(OSError):  # a folder that was removed
                    os.utime(claim / "heartbeat")


_HEART = _Heart()


# -- locks ------------------------------------------------------------------------------------------------------------

_PREFIX = "held"
_POLL = 0.1  # seconds


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `path`, a folder for claims, while the block runs; `Locked` at once if it is held, or `wait` for it."""
    if path.is_file():  # the lock file of an earlier version
        path.unlink()
    while (claim := take(path, _PREFIX)) is None:
        if not wait:
            raise Locked(path, holder_of(path))
        time.sleep(_POLL)
    for number in range(last(path, _PREFIX) - 1, 0, -1):  # of before; the highest must stay
        earlier = path / f"{_PREFIX}-{number}"
        if not earlier.exists():
            break
        shutil.rmtree(earlier, ignore_errors=True)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # the folder was removed meanwhile
            claim.end("released")


def holder_of(path: Path) -> str:
    """Who holds a lock."""
    found = holder(path, _PREFIX)
    return "another process" if found is None else str(found)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now. Asking leaves no trace."""
    return holder(path, _PREFIX) is not None
