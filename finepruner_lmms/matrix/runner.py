"""Working through the cells that are not done: launch workers, listen to them, launch again for what is left.

What is true stands on disk; what workers say only moves the display along. A cell that another runner or job holds is
left to it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from finepruner_lmms.claims import ended
from finepruner_lmms.errors import Failure
from finepruner_lmms.files import try_to_write
from finepruner_lmms.matrix.attempts import PREFIX, end_abandoned, failed_since, holder, last_attempt, write_error
from finepruner_lmms.matrix.launch import Launch, Slot, WorkerTimeout, sweep
from finepruner_lmms.matrix.modes import Mode, choose_mode, in_order, num_processes, places, together, usable_gpus
from finepruner_lmms.matrix.plan import Cell, Event, Plan, PlannedCell
from finepruner_lmms.matrix.progress import score_text
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.matrix.store import State, Store

MAX_DEATHS = 2
"""A cell during which the worker died so often, without a new answer in between, is given up."""
_SLOT_DEATHS = 2
"""A place whose worker died so often in a row is left out, as long as there are others."""
_SETTLED = ("done", "answered", "failed")
_POLL = 0.1  # seconds
_TOLD = 0.5  # seconds by which a signal may reach a worker before its runner
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LaunchError(Failure, RuntimeError):
    """A worker ended before it began any cell, so that trying again would change nothing."""

    exit_status = 1


class OutputGone(Failure, OSError):
    """The output directory was removed while the run worked in it."""

    exit_status, kept = 1, False


class Display(Protocol):
    """Who shows the progress of a run. Workers are told apart by the number of their place."""

    def expect(self, cells: Sequence[Cell], seconds: Mapping[str, float]) -> None:
        """What is to be done, and how long each cell is expected to take, by its id, where that is known."""

    def tick(self) -> None:
        """Time goes by: called several times a second, or as often as somebody looks."""

    def note(self, text: str) -> None:
        """Something that is not about one cell."""

    def cell_started(self, label: str, worker: int = 0) -> None:
        """A cell began."""

    def cell_progress(self, done: int, total: int, worker: int = 0, together: int = 1) -> None:
        """So many of its questions are answered, and those of as many cells `together`."""

    def cell_ended(self, cell: Cell, state: str, text: str, worker: int = 0) -> None:
        """A cell ended: "done" with its score, or "failed" with the reason."""


def run_cells(
    store: Store,
    file: MatrixFile,
    cells: Sequence[Cell],
    display: Display,
    *,
    mode: Mode | None = None,
    seconds: Mapping[str, float] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Work through `cells` but for those that others hold. What came of each is on disk afterwards.

    `mode` is how, `launch.mode` if None; `seconds` are how long each cell is expected to take, by its id. With `stop`
    set workers are ended, and what they were at can be taken by others. `LaunchError` if no worker can start.
    """
    if not cells:
        return
    gpus = usable_gpus(file.model)
    chosen = mode or choose_mode(file.launch, num_processes(file.launch, gpus), len(cells))
    display.expect(cells, seconds or {})
    crew = Crew(store, file, cells, display, chosen, places(file, chosen, gpus), seconds or {}, stop)
    with ExitStack() as stack:
        stack.callback(crew.stop)
        while crew.step() and not (stop is not None and stop.is_set()):
            display.tick()
            time.sleep(_POLL)


class Worker:
    """A place and the worker in it, if there is one."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.launch: Launch | None = None
        self.current: str | None = None
        self.started = False
        self.deaths = 0
        self.false_starts = 0
        self.lost: set[str] = set()
        """The cells in which it died."""
        self.usable = True

    @property
    def name(self) -> str:
        """For messages."""
        return f"worker {self.slot.number}" + (f" (GPU {self.slot.devices})" if self.slot.devices else "")


class Crew:
    """The workers of one run on this machine."""

    def __init__(
        self,
        store: Store,
        file: MatrixFile,
        cells: Sequence[Cell],
        display: Display,
        mode: Mode,
        slots: Sequence[Slot],
        seconds: Mapping[str, float],
        stop: threading.Event | None = None,
    ) -> None:
        self._stop = stop
        self._began = time.time()
        self._store, self._file, self._display, self._mode = store, file, display, mode
        self._seconds = seconds
        store.root.mkdir(parents=True, exist_ok=True)
        self._left = {cell.id: cell for cell in cells}
        self._folders = dict(zip(self._left, store.cell_dirs(cells), strict=True))
        self._before = {name: last_attempt(folder) for name, folder in self._folders.items()}
        self._workers = [Worker(slot) for slot in slots]
        self._deaths: Counter[str] = Counter()
        self._answered: dict[str, int] = {}
        self._died = 0
        self._port_was_taken = False
        self._take_note_of_others()  # of what they ended after `cells` were found missing

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Start what can be started and hear what was said; False once nothing is left to do here."""
        if not self._store.root.exists():
            raise OutputGone(
                f"output: {str(self._store.root)!r} was removed while the run worked in it; `run` begins anew"
            )
        self._start()
        for worker in self._workers:
            if worker.launch is not None:
                self._listen(worker)
        return any(worker.launch is not None for worker in self._workers) or self._can_start()

    def stop(self) -> None:
        """End all workers; what they were at was interrupted, and can be taken by anybody."""
        for worker in self._workers:
            if worker.launch is not None:
                worker.launch.stop()
                worker.launch = None
        for folder in self._folders.values():
            end_abandoned(folder, "interrupted")

    def _free(self) -> dict[str, int]:
        """The cells that nobody works on, and that nobody has settled since the run began: attempts made, by id."""
        found = ((name, self._attempts_if_free(name)) for name in self._left)
        return {name: attempts for name, attempts in found if attempts is not None}

    def _attempts_if_free(self, name: str) -> int | None:
        """How many attempts had been made when the cell was found free: a worker may make the next, and no later."""
        folder = self._folders[name]
        number = last_attempt(folder)
        if number > self._before[name] and ended(folder / f"{PREFIX}-{number}") in _SETTLED:
            return None  # its worker's word is on its way, or it was another run's
        return number if holder(folder) is None else None

    def _idle(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.usable and worker.launch is None]

    def _can_start(self) -> bool:
        free = self._free()
        return any(self._suited(worker, free) for worker in self._idle())

    def _suited(self, worker: Worker, free: Collection[str]) -> list[Cell]:
        """What a place is to work on: a cell that died there is for another, as long as there is one."""
        alone = all(other is worker or not other.usable for other in self._workers)
        return [self._left[name] for name in free if alone or name not in worker.lost]

    def _start(self) -> None:
        """A worker for each place that has none, as long as there are cells for it."""
        idle = self._idle()
        if not idle or not self._left or not (free := self._free()):
            return
        # those that have not begun will take some of what is free
        starting = sum(1 for worker in self._workers if worker.launch is not None and not worker.started)
        most = together(self._file, self._mode, len(free), len(self._workers), self._died)
        groups = -(-len(free) // most) if most else len({self._left[name].task for name in free})
        ready = [(worker, cells) for worker in idle if (cells := self._suited(worker, free))]
        for worker, cells in ready[: max(0, groups - starting)]:
            ordered = in_order(cells, self._seconds, most) if self._mode == "packed" else cells
            self._launch(worker, ordered, free, most)

    def _launch(self, worker: Worker, cells: Sequence[Cell], attempts: Mapping[str, int], most: int | None) -> None:
        folder, file = self._store.new_launch(), self._file
        planned = [
            PlannedCell(**dict(cell), path=self._folders[cell.id].resolve(), attempts=attempts[cell.id])
            for cell in cells
        ]
        plan = Plan(
            launch=folder.name,
            model=file.model,
            batch_size=file.launch.batch_size,
            data=file.data,
            limit=file.limit,
            monitor=file.monitor,
            record=file.record.questions,
            submission=file.submission,
            protocol=file.protocol,
            tasks_dir=file.tasks_dir,
            fan_out=most,
            mode=self._mode,
            processes=worker.slot.processes,
            cells=tuple(planned),
        )
        worker.current, worker.started = None, False
        worker.launch = Launch(folder, plan, worker.slot, file.launch.timeouts)

    # -- what workers say ---------------------------------------------------------------------------------------------

    def _listen(self, worker: Worker) -> None:
        assert worker.launch is not None
        try:
            events, ended = worker.launch.read()
        except WorkerTimeout as still:
            events, ended = [], True
            silent = str(still)
        else:
            silent = ""
        for event in events:
            self._hear(worker, event)
        if ended:
            launch, worker.launch = worker.launch, None
            launch.stop()
            self._after(worker, launch, silent)

    def _hear(self, worker: Worker, event: Event) -> None:
        number = worker.slot.number
        match event.event:
            case "loading":
                self._display.note(
                    "loading the model" if len(self._workers) == 1 else f"{worker.name}: loading the model"
                )
            case "start":
                worker.started, worker.current = True, event.cell
                if event.cell in self._left:
                    self._display.cell_started(self._left[event.cell].label, number)
            case "progress":
                self._display.cell_progress(event.done, event.total, number, event.together)
            case "lost":
                worker.current = None
            case "done" | "failed":
                worker.current, worker.deaths = None, 0
                if (cell := self._left.pop(event.cell, None)) is not None:  # not shown yet
                    state = self._store.state(cell)  # the truth is on disk, not in what the worker says
                    self._check_disk(state.reason)
                    self._display.cell_ended(cell, state.name, _ending(state), number)

    def _after(self, worker: Worker, launch: Launch, silent: str) -> None:
        """A worker ended: whether it lost a cell, or could not start, or left what is still to do."""
        current, worker.current = worker.current, None
        current = current if current in self._left else None
        if current is not None and (state := self._store.state(self._left[current])).name not in ("missing", "running"):
            # it ended before it could say so, or a process other than the first failed and wrote down why
            self._display.cell_ended(self._left.pop(current), state.name, _ending(state), worker.slot.number)
        elif current is not None:  # the worker went without a word
            reason = silent or f"the worker ended in the middle of the cell: {launch.exit_text()}; {launch.reason()}"
            self._died_in(worker, current, reason)
        elif not worker.started and launch.failed:
            self._could_not_start(worker, launch, silent)
        elif not worker.started:
            worker.usable = False  # it found nothing to take: whoever has the cells will end them
        self._take_note_of_others()

    def _check_disk(self, reason: str) -> None:
        """Raise `OSError` where the disk is full: that is no cell's fault, and all others would fail as well."""
        for number in _FULL:
            if f"[Errno {number}]" in reason:
                raise OSError(number, os.strerror(number), str(self._store.root))
        if self._store.root.exists():
            try_to_write(self._store.root)

    def _died_in(self, worker: Worker, name: str, reason: str) -> None:
        """A death counts against the cell, unless answers came since the last; and against the place."""
        self._check_disk(reason)
        folder, cell = self._folders[name], self._left[name]
        if self._stop is not None and self._stop.wait(_TOLD):  # whoever told us to stop may have told the worker, too
            return
        answered = sum(file.stat().st_size for file in folder.glob("cache/**/*") if file.is_file())
        self._deaths[name] = 1 if answered > self._answered.get(name, 0) else self._deaths[name] + 1
        self._answered[name] = answered
        self._died += 1
        if holder(folder) is not None:
            self._display.note(f"{cell.label}: {reason}; another run goes on with it")
        elif self._deaths[name] >= MAX_DEATHS:
            self._left.pop(name)
            write_error(folder, "WorkerDied", reason)
            self._display.cell_ended(cell, "failed", reason, worker.slot.number)
        else:
            end_abandoned(folder, "died")
            self._display.note(f"{cell.label}: {reason}; starting again")
        worker.deaths += 1
        worker.lost.add(name)
        others = [other for other in self._workers if other.usable and other is not worker]
        if worker.deaths >= _SLOT_DEATHS and others:
            worker.usable = False
            self._display.note(f"{worker.name} is left out: it died {worker.deaths} times in a row")

    def _could_not_start(self, worker: Worker, launch: Launch, silent: str) -> None:
        if not self._port_was_taken and "EADDRINUSE" in launch.log.read_text(encoding="utf-8", errors="replace"):
            self._port_was_taken = True
            return
        reason = f"the worker could not start: {silent or launch.reason()}\n  log: {launch.log}"
        self._check_disk(reason)
        worker.false_starts += 1
        if launch.was_killed and worker.false_starts < MAX_DEATHS:
            self._display.note(f"{worker.name} was killed before it began; starting again")
            return
        worker.usable = False
        if not any(other.usable for other in self._workers):
            raise LaunchError(reason)
        self._display.note(f"{worker.name} is left out: {reason}")

    def _take_note_of_others(self) -> None:
        """Cells that another runner or job has ended meanwhile, or in which it failed."""
        mine = {worker.current for worker in self._workers}
        for name in [name for name in self._left if name not in mine]:
            if not self._folders[name].is_dir():
                continue
            state = self._store.state(self._left[name])
            failed = state.name == "failed" and failed_since(self._folders[name], self._began)
            if state.name in ("done", "waiting") or failed:
                self._display.cell_ended(self._left.pop(name), state.name, _ending(state))


def _ending(state: State) -> str:
    return score_text(state.result) if state.result else state.reason


def clean_up(store: Store) -> None:
    """End what a run that is gone has left behind on this machine, but nothing of a run or job that works here now."""
    sweep(store.root / "launches", orphans=True)
