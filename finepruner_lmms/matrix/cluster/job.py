"""What a job does: cells that nobody else works on, one after another, until none is left or the job is to end.

A job that is told to end (SIGTERM) stops its workers, so that another job may go on with their cells, and leaves.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from finepruner_lmms.claims import this_job
from finepruner_lmms.errors import Failure
from finepruner_lmms.matrix.launch import own_environment
from finepruner_lmms.matrix.squeue import SlurmError, queue

_PATIENCE = 60.0  # seconds that workers may take to end
TOLD_TO_END = 128 + signal.SIGTERM


class StudyJob:
    """Works through the study in the directory `root`; submitit pickles it and calls it in the job."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._stop: threading.Event | None = None
        self._worker: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._finished = False

    def __getstate__(self) -> dict[str, Any]:
        return StudyJob(self.root).__dict__

    def __call__(self) -> None:
        """Work; returns when nothing is left to take. Ends the process with `TOLD_TO_END` on SIGTERM."""
        for key in os.environ.keys() - own_environment(os.environ).keys():
            del os.environ[key]  # of the step that started this process: what runs here has ranks of its own, or none
        self._stop = threading.Event()
        signal.signal(signal.SIGTERM, self._told_to_end)
        # in a thread of its own, because a signal interrupts the main one wherever that is
        self._worker = threading.Thread(target=self._work, args=(self._stop,), name="work")
        self._worker.start()
        try:
            while self._worker.is_alive():
                self._worker.join(0.2)
        except KeyboardInterrupt:
            self._stop.set()
            self._worker.join(_PATIENCE)
            raise
        if self._stop.is_set():
            if not self._finished and _is_preempted():  # whoever leaves by himself is not put back into the queue
                signal.raise_signal(signal.SIGUSR2)
            sys.exit(TOLD_TO_END)
        if isinstance(self._failure, Failure):
            sys.stderr.write(f"{self._failure}\n")
            sys.exit(self._failure.exit_status)
        if self._failure is not None:
            traceback.print_exception(self._failure)
            sys.exit(1)

    def checkpoint(self) -> Any:
        """SLURM is about to end the job: stop the workers, and have the same done again when the job is started again.

        None, so that it is not, where nothing is left to do.
        """
        from submitit.helpers import DelayedSubmission

        assert self._stop is not None and self._worker is not None, "a job that runs"
        self._stop.set()
        self._worker.join(_PATIENCE)
        return None if self._finished else DelayedSubmission(StudyJob(self.root))

    def _told_to_end(self, number: int, frame: FrameType | None) -> None:
        assert self._stop is not None
        self._stop.set()

    def _work(self, stop: threading.Event) -> None:
        # SLURM signals every process of a job; a mask is inherited, so that the warning ends no worker before we do
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        from rich.console import Console

        from finepruner_lmms.matrix.progress import display_for
        from finepruner_lmms.matrix.store import Store
        from finepruner_lmms.matrix.work import work

        try:
            root = Path(self.root)
            states = Store(root).states(Store(root).study().cells)
            done = sum(state.name in ("done", "waiting") for state in states)
            with display_for(Console(file=sys.stdout, soft_wrap=True), len(states), done) as display:
                work(root, display, stop)
            self._finished = not stop.is_set()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            self._failure = error


def _is_preempted() -> bool:
    """Whether we are in a job of submitit's on SLURM that nobody cancelled: then SIGTERM makes room for another."""
    job = this_job()
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    number = job.split(":")[2]
    try:
        return any(found.id == number and found.state == "RUNNING" for found in queue(ids=[number]))
    except SlurmError:
        return False
