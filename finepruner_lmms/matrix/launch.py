"""One worker, in processes of its own: started, listened to, and always ended with all that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from finepruner_lmms import tether
from finepruner_lmms.claims import is_there, name_of_this
from finepruner_lmms.files import read_object, write_json
from finepruner_lmms.judge.settings import VARIABLE as JUDGE
from finepruner_lmms.lmms.batch_sizes import VARIABLE as BATCH_SIZES
from finepruner_lmms.lmms.heartbeat import VARIABLE as HEARTBEAT
from finepruner_lmms.matrix.plan import Event, Plan
from finepruner_lmms.matrix.sections import Timeouts

_POLL = 0.1  # seconds
_GRACE = 5.0  # seconds between asking a worker to end and ending it
MARK = "FINEPRUNER_LAUNCH"
"""In the environment of every process of a launch, with the launch's directory: by it all of them are found."""
RUNNER = "FINEPRUNER_RUNNER"
"""Beside it, the process that started the launch."""
# what an outer launcher or scheduler leaves behind would make the worker look for peers that are not there
_FOREIGN = re.compile(
    r"(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|NODE_RANK|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_ADDR|MASTER_PORT"
    r"|TORCHELASTIC_.*|ACCELERATE_.*|LMMS_CACHE_RUN_ID|PMI_.*|PMIX_.*|OMPI_.*|FINEPRUNER_(LAUNCH|RUNNER|HEARTBEAT|JOURNAL)"
    r"|SLURM_(PROCID|LOCALID|NODEID|NTASKS.*|NPROCS|STEP_.*|STEPID|TASK_PID|GTIDS|SRUN_.*))"
)
_KILLED = re.compile(r"failed \(exitcode: -(\d+)\) local_rank: (\d+)")
"""What torchrun says of a rank that a signal ended, and of no other."""
_DOING = {
    "start": "starting",
    "download": "downloading the checkpoint",
    "load": "loading the model",
    "index": "reading the task and its data",
    "answer": "answering",
    "score": "scoring",
}


class WorkerTimeout(RuntimeError):
    """The worker stood still for longer than `launch.timeout_minutes`."""


@dataclass(frozen=True)
class Slot:
    """A place for one worker: its number, and how many processes it has.

    `devices` are as `CUDA_VISIBLE_DEVICES` has them, None for all; `cpu` says that none is used, whatever the machine
    has. `cores` are its share of the processor's.
    """

    number: int = 0
    processes: int = 1
    devices: str | None = None
    cpu: bool = False
    cores: int = 1


class Launch:
    """A running worker. A context manager: on leaving it, no process of the worker is alive."""

    def __init__(self, folder: Path, plan: Plan, slot: Slot, timeouts: Timeouts) -> None:
        self.folder, self.slot, self.log = folder, slot, folder / "log.txt"
        self._timeouts = timeouts
        self._heard = self._looked = time.monotonic()
        self._signs: dict[str, Any] = {}
        self._rest = ""
        plan_file = folder / "plan.json"
        write_json(plan_file, plan.model_dump(mode="json"))
        events = folder / "events.jsonl"
        events.touch()
        self._events = events.open("r", encoding="utf-8")
        # outlives this process by a moment: until a rank of a launcher has begun, nothing in it knows of its parents
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(tether.__file__)), "--guard", _mark(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                tethered(_command(folder, slot, plan, plan_file)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(folder, slot),
                start_new_session=True,
            )

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def read(self) -> tuple[list[Event], bool]:
        """What the worker said since it was last asked, and whether that was all. `WorkerTimeout` if it is stuck."""
        ended = self._process.poll() is not None  # asked before reading, so that the last words are read
        self._rest += self._events.read()
        *lines, self._rest = self._rest.split("\n")
        now = time.monotonic()
        if lines:
            self._heard = now
        elif not ended and now - self._looked >= min(1.0, 60 * self._timeouts.answer / 10):
            self._looked = now
            self._look_for_life(now)
        return [Event.model_validate_json(line) for line in lines], ended

    def _look_for_life(self, now: float) -> None:
        """Whether some process of the worker moved since the last look; `WorkerTimeout` if none did for too long."""
        signs = {str(file): read_object(file) or {} for file in self.folder.rglob("rank-*.json")}
        moves = {name: sign.get("moves") for name, sign in signs.items()}
        if moves != self._signs:
            self._signs, self._heard = moves, now
            return
        still = (now - self._heard) / 60
        phases = {str(sign.get("phase")) for sign in signs.values()} & _DOING.keys() or {"start"}
        phase = max(phases, key=list(_DOING).index)  # others wait for the process that is furthest
        limit = getattr(self._timeouts, phase)
        if still > limit:
            where = sorted(
                {str(sign.get("where")) for sign in signs.values() if sign.get("where") and sign.get("phase")}
            )
            place = f", in {' and '.join(where)}" if where else ""
            raise WorkerTimeout(
                f"no movement for {limit:g} minutes while {_DOING[phase]}{place} (launch.timeout_minutes)"
            )

    def stop(self) -> None:
        """End the worker and everything it started."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()  # each process of the worker watches for this
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._gone():
                break
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            deadline = time.monotonic() + _GRACE
            while time.monotonic() < deadline and not self._gone():
                time.sleep(_POLL)
                if number == signal.SIGKILL:
                    sweep(self.folder)
        sweep(self.folder)
        self._process.poll()
        self._events.close()
        if self._guard.stdin is not None:
            with suppress(BrokenPipeError):
                self._guard.stdin.close()
        self._guard.wait()

    def _gone(self) -> bool:
        self._process.poll()  # reap the leader, or it would count as alive
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return not processes_of(self.folder)
        return False

    def exit_text(self) -> str:
        """How the worker ended, for messages."""
        code = self._process.returncode
        if code is None:
            return "it was stopped"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than by its own will."""
        return self._process.returncode != 0

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it, or one of the processes of `accelerate launch`, which says so in its log."""
        if (self._process.returncode or 0) < 0:
            return True
        return bool(_KILLED.search(self.log.read_text(encoding="utf-8", errors="replace")))

    def reason(self) -> str:
        """The last error in the log, or its last line."""
        return last_error(self.log)


def last_error(log: Path) -> str:
    """The last error in a log, or its last line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "there is no log"
    lines = [line.strip() for line in text.split("\n") if any(character.isalnum() for character in line)]
    errors = [line for line in lines if re.match(r"(\[rank\d+\]:\s*)?[\w.]*(Error|Exception|Result)\b.*:", line)]
    errors = [line for line in errors if "CalledProcessError" not in line and "ChildFailedError" not in line]
    if not errors and (killed := _KILLED.search(text)):
        return f"rank {killed[2]} was killed by {signal.Signals(int(killed[1])).name}"
    return (errors or lines or ["the log is empty"])[-1]


def processes_of(folder: Path, orphans: bool = False) -> list[int]:
    """The processes of the launches in `folder` on this machine, in whatever session; or those whose runner is gone."""
    found = tether.marked(_mark(folder))
    return [pid for pid in found if not _has_runner(pid)] if orphans else found


def _mark(folder: Path) -> str:
    return f"{MARK}={folder.resolve()}"


def _has_runner(pid: int) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone
        return False
    start = f"{RUNNER}=".encode()
    return any(is_there(part[len(start) :].decode()) for part in variables if part.startswith(start))


def sweep(folder: Path, orphans: bool = False) -> None:
    """End what is left of the launches in `folder` on this machine; `orphans`: only where its runner is gone."""
    for pid in processes_of(folder, orphans):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def tethered(command: list[str]) -> list[str]:
    """A command whose process ends with this one."""
    return [sys.executable, "-I", "-S", str(Path(tether.__file__)), str(os.getpid()), *command]


def accelerate(folder: Path, processes: int, module: list[str]) -> list[str]:
    """`accelerate launch` of a module in so many processes."""
    # a configuration of our own, so that the user's default one changes nothing
    config = folder / "accelerate.yaml"
    kind, several = ("MULTI_GPU", ["--multi_gpu"]) if processes > 1 else ("'NO'", [])
    config.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\n", encoding="utf-8")
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
        *("--num_machines", "1", "--num_processes", str(processes), *several),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", *module),
    ]


def _command(folder: Path, slot: Slot, plan: Plan, plan_file: Path) -> list[str]:
    module = ["finepruner_lmms.matrix.worker", str(plan_file)]
    # only processes that share questions need a launcher; the isolated worker starts one for each cell
    return accelerate(folder, slot.processes, module) if plan.mode == "resident" else [sys.executable, "-m", *module]


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what an outer launcher or scheduler says of its own processes."""
    return {key: value for key, value in environment.items() if not _FOREIGN.fullmatch(key)}


def _environment(folder: Path, slot: Slot) -> dict[str, str]:
    environment = own_environment(os.environ)
    environment |= {"FINEPRUNER_PARENT": "stdin", "PYTHONUNBUFFERED": "1"}
    environment |= {MARK: str(folder.resolve()), RUNNER: name_of_this()}
    # the parent sees to judging
    environment |= {JUDGE: "later", HEARTBEAT: str(folder.resolve())}
    environment |= {BATCH_SIZES: str(folder.resolve().parents[1] / "batch-sizes.jsonl")}  # all launches share it
    defaults = {"TOKENIZERS_PARALLELISM": "false"}
    if slot.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.devices
    if slot.cpu:
        environment["ACCELERATE_USE_CPU"] = "true"  # with two processes on a machine with GPUs, NCCL would be started
        # threads that spin while they wait take the cores from each other
        defaults |= {
            "OMP_NUM_THREADS": str(max(1, slot.cores // slot.processes)),
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "0",
        }
    return defaults | environment


def heartbeat_of(folder: Path) -> dict[str, Any]:
    """What the first process of a launch said last."""
    return read_object(folder / "rank-0.json") or {}
