"""Time on a device: what a call takes until its work is done, and how far repeated measurements lie apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Spread:
    """Repeated measurements: their median, and the 5th and 95th percentile (of few samples: close to the extremes)."""

    median: float
    p5: float
    p95: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value."""
        low, middle, high = np.percentile(values, (5, 50, 95))
        return cls(float(middle), float(low), float(high), len(values))


def finish(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """What one call takes, from an idle device to an idle device."""
    finish(device)
    started = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - started


def repeated(call: Callable[[], Any], device: torch.device, times: int, warm: int = 2) -> Spread:
    """`seconds`, several times, after some that do not count."""
    for _ in range(warm):
        call()
    return Spread.of([seconds(call, device) for _ in range(times)])
