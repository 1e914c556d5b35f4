"""Work for the next window while the model answers this one."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
P = TypeVar("P")
_WORKERS = 4  # decoding and resizing leave Python's lock; more threads than this find little left to share


def one_ahead(
    windows: Sequence[Sequence[T]],
    prepare: Callable[[Sequence[T]], Callable[[T], P]],
    waited: Callable[[float], None],
) -> Generator[list[P]]:
    """Each window's items as `prepare(window)` makes them, in order; the next window's are made in threads meanwhile.

    An error is raised at the window of its item, the first item's first, after all windows before. No thread is left
    when the last window is given, or when the generator is closed. `waited` is told for how many seconds the caller
    had to wait.
    """
    if not windows:
        return
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="prepare") as pool:

        def submit(window: Sequence[T]) -> list[Future[P]]:
            make = prepare(window)
            return [pool.submit(make, item) for item in window]

        def finish(futures: list[Future[P]]) -> list[P]:
            started = time.perf_counter()
            done = [future.result() for future in futures]
            waited(time.perf_counter() - started)
            return done

        try:
            coming = submit(windows[0])
            for following in windows[1:]:
                done = finish(coming)
                coming = submit(following)
                yield done
            done = finish(coming)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # leaving the pool waits for the few that are at work
    yield done
