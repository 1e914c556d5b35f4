"""What the first process of a worker says to the run that started it."""

from __future__ import annotations

import time
from pathlib import Path

from finepruner_lmms.matrix.plan import Event

_EVERY = 0.5  # seconds between two reports of progress


class Events:
    """What the first process tells the parent, one JSON object per line."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", encoding="utf-8", buffering=1)
        self._last = 0.0

    def send(self, event: Event) -> None:
        """Say it now."""
        if self._file is not None:
            self._file.write(event.model_dump_json(exclude_defaults=True) + "\n")

    def progress(self, done: int, total: int, together: int = 1) -> None:
        """Say how many questions are answered, now and then, of how many cells at once."""
        now = time.monotonic()
        if now - self._last >= _EVERY or done == total:
            self._last = now
            self.send(Event(event="progress", done=done, total=total, together=together))
