"""Going on with a study from what stands in its output directory alone: what a job of a cluster does."""

from __future__ import annotations

import threading
from pathlib import Path

from finepruner_lmms.matrix.run_settings import read_settings
from finepruner_lmms.matrix.runner import Display, run_cells
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.study import to_run


def work(root: Path, display: Display, stop: threading.Event | None = None) -> None:
    """Work through what of the study in `root` is neither done nor held; returns when nothing is left to take.

    Any number of these may run at once, on any machines; each cell is taken by one. `stop` ends the workers, and what
    they were at can be taken by others. `Damage` or `StoreError` where `root` holds no study.
    """
    store, settings = Store(root), read_settings(root)
    study = store.study()
    left = to_run(study, store.states(study.cells))
    run_cells(store, settings.file, left, display, seconds=settings.seconds, stop=stop)
