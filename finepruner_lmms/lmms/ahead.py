"""Work for the next window while the model answers this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
P = TypeVar("P")
_WORKERS = 4  # decoding and resizing leave Python's lock; more threads than this find little left to share


class Stopwatch:
    """Seconds spent inside `running`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def one_ahead(
    windows: Sequence[Sequence[T]], prepare: Callable[[Sequence[T]], Callable[[T], P]], waiting: Stopwatch
) -> Generator[list[P]]:
    """Each window's items as `prepare(window)` makes them, in order; the next window's are made in threads meanwhile.

    An error is raised at the window of its item, the first item's first, after all windows before. The threads end
    with the iterator: close it where it is not used up. `waiting` counts how long the caller had to wait.
    """
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="prepare") as pool:

        def submit(number: int) -> list[Future[P]]:
            if number >= len(windows):
                return []
            make = prepare(windows[number])
            return [pool.submit(make, item) for item in windows[number]]

        try:
            coming = submit(0)
            for number in range(len(windows)):
                with waiting.running():
                    done = [future.result() for future in coming]
                coming = submit(number + 1)
                yield done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # leaving the pool waits for the few that are at work
