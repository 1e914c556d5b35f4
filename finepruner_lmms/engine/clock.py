"""How long it took to the first token, without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import torch


class Clock:
    """Starts when it is made, and stops at the first `mark`; later marks change nothing."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._start = self._now()
        self._end: Any = None

    def mark(self) -> None:
        """The first token is there once the device has done what it was told until now."""
        if self._end is None:
            self._end = self._now()

    @property
    def seconds(self) -> float | None:
        """Between start and mark; None without a mark. Waits for the device, if it has not come so far."""
        if self._end is None:
            return None
        if not self._on_gpu:
            return self._end - self._start
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1000

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
