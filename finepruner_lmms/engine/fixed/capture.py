"""Recording what a function tells a GPU, and telling it again without the function: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_WARM_UPS = 2


class Replay:
    """`function` without arguments, which reads and writes tensors that stay where they are.

    On a GPU it is recorded when it is called first, and replayed from then on; elsewhere it is just called. All
    recordings of a `pool` share the memory of their intermediate values, so that nothing that a function makes may be
    read after another one ran, unless it was copied.
    """

    def __init__(self, function: Callable[[], None], device: torch.device, pool: Any = None) -> None:
        self._function, self._device, self._pool = function, device, pool
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the function, or what was recorded of it."""
        self.record()
        if self._graph is None:
            self._function()
        else:
            self._graph.replay()

    @property
    def recorded(self) -> bool:
        """Whether there is a recording, or none to be made."""
        return self._graph is not None or self._device.type != "cuda"

    def record(self) -> None:
        """Record the function, if there is a GPU to do so and it was not done. The function runs a few times for it."""
        if not self.recorded:
            self._graph = self._record()

    def _record(self) -> torch.cuda.CUDAGraph:
        # libraries set themselves up at the first calls, which cannot be recorded; a stream of its own, as torch asks
        stream, current = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._function()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may copy pictures to the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._function()
        return graph
