"""Going on with a study from what stands in its output directory alone: what a job of a cluster does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from finepruner_lmms.matrix.attempts import failed_since
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.run_settings import RunSettings, read_settings
from finepruner_lmms.matrix.runner import Display, run_cells
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.plugins import name_files


def still_to_do(store: Store, cells: Sequence[Cell], states: Sequence[State], settings: RunSettings) -> list[Cell]:
    """The cells without answers on which nobody works, but for those that failed in this `run` or are passed over."""
    found = zip(cells, states, store.cell_dirs(cells), strict=True)
    return [
        cell
        for cell, state, folder in found
        if state.name == "missing"
        or (state.name == "failed" and cell.id not in settings.passed_over and not failed_since(folder, settings.began))
    ]


def work(root: Path, display: Display, stop: threading.Event | None = None) -> None:
    """Work through what of the study in `root` is neither done nor held; returns when nothing is left to take.

    Any number of these may run at once, on any machines; each cell is taken by one, and what failed in this `run` is
    not tried again. `stop` ends the workers, and what they were at can be taken by others. `Damage` or `StoreError`
    where `root` holds no study.
    """
    store, settings = Store(root), read_settings(root)
    study = store.study()
    name_files(map(Path, settings.file.plugins))  # to the workers, which build the methods
    left = still_to_do(store, study.cells, store.states(study.cells), settings)
    run_cells(store, settings.file, left, display, seconds=settings.seconds, stop=stop)
