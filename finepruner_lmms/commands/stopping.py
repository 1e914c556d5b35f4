"""Being stopped: SIGTERM and SIGHUP (the terminal was closed) end a command as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """One of the signals that stop came."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` in the block when the first signal comes; what comes while it ends interrupts nothing.

    A signal that is ignored when we start stays so: that is how `nohup` and a shell's `&` ask for it.
    """
    before: dict[int, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    if threading.current_thread() is threading.main_thread():
        for number in _STOPS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
