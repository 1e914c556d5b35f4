"""`run` where jobs do the work: submit what is missing, look on until all cells are done, submit again what got lost.

Nothing that matters is in this process. Cells are claimed and finished by the jobs, and `jobs/` names these: a `run`
that was killed is replaced by any other, which finds the jobs that live and submits only what none of them will do.
"""

from __future__ import annotations

import time
from pathlib import Path

from finepruner_lmms.matrix.attempts import failed_since, lost_since, write_error
from finepruner_lmms.matrix.cluster.submissions import Live, Submitted, cancel, live, submit, why
from finepruner_lmms.matrix.executors import Job, find_executor
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.progress import score_text
from finepruner_lmms.matrix.run_settings import RunSettings
from finepruner_lmms.matrix.runner import Display, LaunchError
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.matrix.work import still_to_do

_POLL = 2.0  # seconds between two looks, where looking takes little
_SHARE = 0.1  # of the time, at most, goes into looking
_LOST = 3
"""A cell of which so many attempts came to nothing, because their job died, is given up."""
_BARREN = 2
"""So many submissions in a row between which nobody began a cell are enough."""


class JobsFailed(LaunchError):
    """Jobs end before they begin any cell, so that submitting more would change nothing."""


class JobsCancelled(LaunchError):
    """Somebody ended the jobs with `cancel`."""


def follow(store: Store, study: Study, settings: RunSettings, display: Display) -> None:
    """See to it that jobs work through the cells of the study; returns when none is left to take.

    On Ctrl-C the jobs go on. `JobsFailed` or `JobsCancelled`.
    """
    try:
        _Following(store, study, settings, display).until_done()
    except KeyboardInterrupt:
        display.note(f"the jobs go on: `run` looks on again, `cancel {store.root}` ends them")
        raise


class _Following:
    def __init__(self, store: Store, study: Study, settings: RunSettings, display: Display) -> None:
        self._store, self._study, self._display = store, study, display
        self._launch, self._began = settings.file.launch, settings.began
        find_executor(self._launch.executor).check(self._launch)
        states = store.states(study.cells)
        at_work = {cell.id for cell, state in zip(study.cells, states, strict=True) if state.name == "running"}
        chosen = at_work | {cell.id for cell in still_to_do(store, study.cells, states, settings)}
        self._left = {cell.id: cell for cell in study.cells if cell.id in chosen}
        display.expect(list(self._left.values()), settings.seconds)
        self._seen: dict[str, Job] = {}
        self._owners: dict[str, tuple[Path, Submitted]] = {}
        self._attempts = -1  # when we submitted last
        self._barren = 0
        self._submitted: tuple[Path, Submitted] | None = None
        self._cancelled_before = live(store.root).cancelled

    def until_done(self) -> None:
        while True:
            began = time.monotonic()
            free = self._look_at_cells()
            found = live(self._store.root, remember=True)
            self._tell(found)
            self._display.tick()
            if found.cancelled - self._cancelled_before:
                raise JobsCancelled("the jobs were cancelled; what is done is kept, `run` goes on from here")
            if not self._left:
                cancel(self._store.root, which="waiting")  # they would find nothing to do
                return
            if not found.problems:  # where nobody answers, the jobs may all be there
                self._submit_what_is_missing(found, free)
            time.sleep(max(_POLL, (time.monotonic() - began) / _SHARE))

    def _look_at_cells(self) -> int:
        """Take what is finished out of `_left`; returns how many of the others no job has taken."""
        cells = list(self._left.values())
        free = 0
        folders = self._store.cell_dirs(cells)
        for cell, state, folder in zip(cells, self._store.states(cells), folders, strict=True):
            if state.name in ("missing", "failed") and lost_since(folder, self._began) >= _LOST:
                write_error(folder, "JobDied", f"{_LOST} attempts of jobs came to nothing; launches/ has their logs")
                state = self._store.state(cell)
            if state.name in ("done", "waiting") or (state.name == "failed" and failed_since(folder, self._began)):
                del self._left[cell.id]
                self._display.cell_ended(cell, state.name, _ending(state))
            else:
                free += state.name != "running"
        return free

    def _submit_what_is_missing(self, found: Live, free: int) -> None:
        running, waiting = len(found.running), len(found.waiting)
        wanted = min((self._launch.nodes or 1) - running - waiting, free - waiting)
        if wanted <= 0:
            return
        attempts = self._count_attempts()
        self._barren = self._barren + 1 if attempts == self._attempts else 0
        if self._barren > _BARREN:
            if running or waiting:
                return  # the others go on; whether they get to the end will show
            raise JobsFailed(f"jobs end before they begin any cell: {self._last_words()}")
        self._attempts = attempts
        folder, record = self._submitted = submit(self._store.root, self._study.name, self._launch, wanted)
        jobs = f"{wanted} job{'s' if wanted > 1 else ''}"
        self._display.note(f"{jobs} submitted ({record.executor} {', '.join(record.ids)}); logs in {folder}")

    def _last_words(self) -> str:
        """Of the jobs that we submitted last."""
        folder, record = self._submitted or (None, None)
        said = [why(folder, record, job) for job in record.ids] if folder and record else []
        return next(filter(None, said), "they say nothing of why")

    def _count_attempts(self) -> int:
        """How many attempts at cells of the study there were, whoever made them."""
        return sum(1 for folder in self._store.cell_dirs(self._study.cells) for _ in folder.glob("attempt-*"))

    def _tell(self, found: Live) -> None:
        """Say what changed about the jobs."""
        now = {job.id: job for _, _, job in found.jobs}
        for folder, record, job in found.jobs:
            self._owners[job.id] = folder, record
            if job != self._seen.get(job.id):
                about = f" on {job.where}" if job.where else ""
                self._display.note(f"job {job.id} {job.state}{about}{f': {job.why}' if job.why else ''}")
        if not found.problems:
            for gone in [job for job in self._seen if job not in now]:
                folder, record = self._owners[gone]
                last = why(folder, record, gone)
                self._display.note(f"job {gone} is over{f': {last}' if last else ''}")
            self._seen = now


def _ending(state: State) -> str:
    return score_text(state.result) if state.result else state.reason
