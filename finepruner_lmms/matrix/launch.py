"""One worker, as a real `accelerate launch` in a process group of its own: started, listened to, and always ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from finepruner_lmms.files import write_json
from finepruner_lmms.judge.settings import VARIABLE
from finepruner_lmms.matrix.gpus import count_gpus
from finepruner_lmms.matrix.plan import Event, Plan
from finepruner_lmms.matrix.sections import LaunchSection

_POLL = 0.1  # seconds
_GRACE = 5.0  # seconds between asking a worker to end and ending it
# what an outer launcher or scheduler leaves behind would make the worker look for peers that are not there
_FOREIGN = re.compile(
    r"(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|NODE_RANK|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_.*|MASTER_ADDR|MASTER_PORT"
    r"|TORCHELASTIC_.*|ACCELERATE_.*|LMMS_CACHE_RUN_ID|PMI_.*|PMIX_.*|OMPI_.*"
    r"|SLURM_(PROCID|LOCALID|NODEID|NTASKS.*|NPROCS|STEP_.*|STEPID|TASK_PID|GTIDS|SRUN_.*))"
)


class WorkerTimeout(RuntimeError):
    """The worker said nothing for longer than `launch.timeout_minutes`."""


def num_processes(settings: LaunchSection, gpus: int) -> int:
    """How many processes `launch.processes` means here."""
    return max(1, gpus) if settings.processes == "auto" else settings.processes


class Launch:
    """A running worker. A context manager: on leaving it, no process of the worker is alive."""

    def __init__(self, folder: Path, plan: Plan, settings: LaunchSection) -> None:
        gpus = count_gpus()
        self.folder, self.log = folder, folder / "log.txt"
        self._events = folder / "events.jsonl"
        self._silence = 60 * settings.timeout_minutes
        processes = num_processes(settings, gpus)
        plan_file = folder / "plan.json"
        write_json(plan_file, plan.model_dump(mode="json"))
        self._events.touch()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                _command(folder, processes, plan_file),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(processes, gpus),
                start_new_session=True,
            )

    def __enter__(self) -> Launch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def events(self) -> Iterator[Event]:
        """What the worker says, until it has ended. `WorkerTimeout` if it says nothing for too long."""
        heard = time.monotonic()
        with self._events.open("r", encoding="utf-8") as file:
            rest = ""
            while True:
                ended = self._process.poll() is not None  # asked before reading, so that the last words are read
                rest += file.read()
                *lines, rest = rest.split("\n")
                for line in lines:
                    heard = time.monotonic()
                    yield Event.model_validate_json(line)
                if ended:
                    return
                if time.monotonic() - heard > self._silence:
                    raise WorkerTimeout(f"no progress for {self._silence / 60:g} minutes (launch.timeout_minutes)")
                if not lines:
                    time.sleep(_POLL)

    def stop(self) -> None:
        """End the worker and everything it started."""
        if self._process.stdin is not None:
            self._process.stdin.close()  # each process of the worker watches for this
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._gone():
                return
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + _GRACE
            while time.monotonic() < deadline and not self._gone():
                time.sleep(_POLL)

    def _gone(self) -> bool:
        self._process.poll()  # reap the leader, or it would count as alive
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def exit_text(self) -> str:
        """How the worker ended, for messages."""
        code = self._process.returncode
        if code is None:
            return "it was stopped"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def reason(self) -> str:
        """The last error in the log, or its last line."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
        lines = [line for line in lines if line]
        errors = [line for line in lines if re.match(r"(\[rank\d+\]:\s*)?[\w.]*(Error|Exception|Result)\b.*:", line)]
        errors = [line for line in errors if "CalledProcessError" not in line and "ChildFailedError" not in line]
        return (errors or lines or ["the log is empty"])[-1]


def _command(folder: Path, processes: int, plan_file: Path) -> list[str]:
    # a configuration of our own, so that the user's default one changes nothing
    config = folder / "accelerate.yaml"
    kind, several = ("MULTI_GPU", ["--multi_gpu"]) if processes > 1 else ("'NO'", [])
    config.write_text(f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\n", encoding="utf-8")
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)),
        *("--num_machines", "1", "--num_processes", str(processes), *several),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", "finepruner_lmms.matrix.worker", str(plan_file)),
    ]


def _environment(processes: int, gpus: int) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not _FOREIGN.fullmatch(key)}
    environment |= {"FINEPRUNER_PARENT": "stdin", "PYTHONUNBUFFERED": "1"}
    environment |= {VARIABLE: "later"}  # the parent sees to judging
    defaults = {"TOKENIZERS_PARALLELISM": "false"}
    if gpus == 0:
        environment["ACCELERATE_USE_CPU"] = "true"
        cores = len(os.sched_getaffinity(0))
        # threads that spin while they wait take the cores from each other
        defaults |= {
            "OMP_NUM_THREADS": str(max(1, cores // processes)),
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "0",
        }
    return defaults | environment
