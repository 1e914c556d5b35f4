"""Encoded images, kept between questions, methods and cells; what stays when there is no room for all.

A study asks the same images in the same order for every cell. When they do not all fit, "least recently used" throws
each out just before it is asked again, and finds none. Here what is there stays, which finds as many as there is room
for: no policy can find more in a scan that repeats.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.pruners.vision_outputs import VisionOutputs

_ROUNDED = ("features", "projected", "cls_projected")  # what chooses tokens stays in float32


@dataclass(frozen=True)
class Storage:
    """How images are kept: on the model's `device` or in the host's memory, and as `dtype`, if not as they are.

    Half precision takes half the room of float32, and changes answers about as much as a model in half precision would
    from its visual tokens on. So every image is rounded, whether it was found or has just been encoded.
    """

    device: torch.device
    place: str = "device"
    dtype: torch.dtype | None = None

    def rounded(self, outputs: VisionOutputs) -> VisionOutputs:
        """The images as they would be found again."""
        if self.dtype is None:
            return outputs
        named = outputs.tensors()
        rounded = {name: named[name].to(self.dtype).to(named[name].dtype) for name in _ROUNDED if name in named}
        return outputs.replace(**rounded)

    def stored(self, outputs: VisionOutputs) -> VisionOutputs:
        """A copy of `rounded` images in the form in which they are kept."""
        if self.dtype is not None:
            named = outputs.tensors()
            outputs = outputs.replace(**{name: named[name].to(self.dtype) for name in _ROUNDED if name in named})
        return outputs.map(self._copy)

    def found(self, stored: VisionOutputs, types: dict[str, torch.dtype]) -> VisionOutputs:
        """Images that were kept, as the model computes with them: on its device, in the `types` they had."""
        changed = {
            name: value.to(self.device, types[name], non_blocking=True) for name, value in stored.tensors().items()
        }
        return stored.replace(**changed)

    def nbytes(self, outputs: VisionOutputs) -> int:
        """The memory that images take once they are `stored`. What is pinned takes a power of two."""
        sizes = [
            tensor.numel() * (self.dtype if self.dtype is not None and name in _ROUNDED else tensor.dtype).itemsize
            for name, tensor in outputs.tensors().items()
        ]
        return sum(1 << (size - 1).bit_length() for size in sizes) if self._pinned else sum(sizes)

    @property
    def _pinned(self) -> bool:
        return self.place == "host" and self.device.type == "cuda"

    def _copy(self, tensor: Tensor) -> Tensor:
        if self.place == "device":
            return tensor.clone()
        # without a wait: whatever reads it later is behind the copy in the same stream
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
        return kept.copy_(tensor, non_blocking=self._pinned)


@dataclass
class _Entry:
    outputs: VisionOutputs
    types: dict[str, torch.dtype]
    size: int
    scan: int
    tasks: frozenset[str]


class ImageCache:
    """Encoded images by key, up to `room` bytes. A scan is one pass through the questions of some tasks.

    An image makes room for another only if it belongs to other tasks than the current scan's, or was asked neither in
    this scan nor in the one before.
    """

    def __init__(self, room: int, storage: Storage) -> None:
        self._room = room
        self._storage = storage
        self._used = 0
        self._scan = 0
        self._tasks: frozenset[str] = frozenset()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    @property
    def used(self) -> int:
        """The bytes that are taken."""
        return self._used

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
        return self._storage.found(entry.outputs, entry.types)

    def put(self, key: bytes, outputs: VisionOutputs) -> None:
        """Keep an image, `rounded` as its storage says, if there is room for it or if others may leave."""
        if key in self._entries:
            return
        size = self._storage.nbytes(outputs)
        if size > self._room:
            return
        while self._used + size > self._room:
            oldest, entry = next(iter(self._entries.items()))
            if entry.tasks & self._tasks and entry.scan >= self._scan - 1:
                return
            del self._entries[oldest]
            self._used -= entry.size
        types = {name: value.dtype for name, value in outputs.tensors().items()}
        self._entries[key] = _Entry(self._storage.stored(outputs), types, size, self._scan, self._tasks)
        self._used += size
