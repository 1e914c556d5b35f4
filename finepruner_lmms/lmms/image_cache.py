"""Encoded images, kept between questions, methods and cells; what stays when there is no room for all.

A study asks the same images in the same order for every cell. When they do not all fit, "least recently used" throws
each out just before it is asked again, and finds none. Here what is there stays, which finds as many as there is room
for: no policy can find more in a scan that repeats.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from finepruner_lmms.pruners.vision_outputs import VisionOutputs


@dataclass
class _Entry:
    outputs: VisionOutputs
    scan: int
    tasks: frozenset[str]


class ImageCache:
    """Encoded images by key, up to `megabytes`. A scan is one pass through the questions of some tasks.

    An image makes room for another only if it belongs to other tasks than the current scan's, or was asked neither in
    this scan nor in the one before.
    """

    def __init__(self, megabytes: int) -> None:
        self._room = megabytes * 2**20
        self._used = 0
        self._scan = 0
        self._tasks: frozenset[str] = frozenset()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def begin_scan(self, tasks: Iterable[str] = ()) -> None:
        """The questions of `tasks` are asked from here on."""
        self._scan += 1
        self._tasks = frozenset(tasks)

    def get(self, key: bytes) -> VisionOutputs | None:
        """The image's outputs, as a batch of one, if they are here."""
        if (entry := self._entries.get(key)) is None:
            return None
        entry.scan, entry.tasks = self._scan, self._tasks
        self._entries.move_to_end(key)
        return entry.outputs

    def put(self, key: bytes, outputs: VisionOutputs) -> None:
        """Keep an image if there is room for it, or if others may leave."""
        size = outputs.nbytes
        if key in self._entries or size > self._room:
            return
        while self._used + size > self._room:
            oldest, entry = next(iter(self._entries.items()))
            if entry.tasks & self._tasks and entry.scan >= self._scan - 1:
                return
            del self._entries[oldest]
            self._used -= entry.outputs.nbytes
        self._entries[key] = _Entry(outputs.map(lambda tensor: tensor.clone()), self._scan, self._tasks)
        self._used += size
