"""Working through the cells that are not done: launch, listen, launch again for what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from finepruner_lmms.errors import Failure
from finepruner_lmms.matrix.attempts import write_error
from finepruner_lmms.matrix.launch import Launch, WorkerTimeout
from finepruner_lmms.matrix.plan import Cell, Plan, PlannedCell
from finepruner_lmms.matrix.progress import score_text
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.matrix.store import State, Store

MAX_DEATHS = 2
"""A cell during which the worker died so often is given up."""


class LaunchError(Failure, RuntimeError):
    """A worker ended before it began any cell, so that trying again would change nothing."""


class Display(Protocol):
    """Who shows the progress of a run."""

    def note(self, text: str) -> None:
        """Something that is not about one cell."""

    def cell_started(self, label: str) -> None:
        """A cell began."""

    def cell_progress(self, done: int, total: int) -> None:
        """So many of its questions are answered."""

    def cell_ended(self, cell: Cell, state: str, text: str) -> None:
        """A cell ended: "done" with its score, or "failed" with the reason."""


def run_cells(store: Store, file: MatrixFile, cells: Sequence[Cell], display: Display) -> None:
    """Work through `cells`. What came of each is on disk afterwards; `LaunchError` if no worker can start."""
    left = {cell.id: cell for cell in cells}
    deaths: Counter[str] = Counter()
    port_was_taken = False
    while left:
        folder = store.new_launch()
        planned = [PlannedCell(**dict(cell), path=store.cell_dir(cell).resolve()) for cell in left.values()]
        plan = Plan(
            launch=folder.name,
            model=file.model,
            batch_size=file.launch.batch_size,
            data=file.data,
            limit=file.limit,
            monitor=file.monitor,
            submission=file.submission,
            fan_out=file.launch.at_once(len(left), deaths.total()),
            cells=tuple(planned),
        )
        with Launch(folder, plan, file.launch) as launch:
            started, current, silent = _listen(launch, left, store, display)
        if current is not None and (state := store.state(left[current], live=False)).name != "missing":
            # it ended before it could say so, or a process other than the first failed and wrote down why
            display.cell_ended(left.pop(current), state.name, _ending(state))
        elif current is not None:  # the worker went without a word
            deaths[current] += 1
            reason = silent or f"the worker ended in the middle of the cell: {launch.exit_text()}; {launch.reason()}"
            if deaths[current] >= MAX_DEATHS:
                cell = left.pop(current)
                write_error(store.cell_dir(cell), "WorkerDied", reason)
                display.cell_ended(cell, "failed", reason)
            else:
                display.note(f"{left[current].label}: {reason}; starting again")
        elif not started:
            if not port_was_taken and "EADDRINUSE" in launch.log.read_text(errors="replace"):
                port_was_taken = True
                continue
            raise LaunchError(f"the worker could not start: {silent or launch.reason()}\n  log: {launch.log}")


def _listen(launch: Launch, left: dict[str, Cell], store: Store, display: Display) -> tuple[bool, str | None, str]:
    """Follow one worker and take finished cells out of `left`.

    Returns whether any cell began, the cell it was in when it ended, and why we stopped it if we did.
    """
    started, current = False, None
    try:
        for event in launch.events():
            match event.event:
                case "loading":
                    display.note("loading the model")
                case "start":
                    started, current = True, event.cell
                    display.cell_started(left[event.cell].label)
                case "progress":
                    display.cell_progress(event.done, event.total)
                case "done" | "failed":
                    current = None
                    cell = left.pop(event.cell)
                    state = store.state(cell, live=True)  # the truth is on disk, not in what the worker says
                    display.cell_ended(cell, state.name, _ending(state))
    except WorkerTimeout as silence:
        return started, current, str(silence)
    return started, current, ""


def _ending(state: State) -> str:
    return score_text(state.result) if state.result else state.reason
