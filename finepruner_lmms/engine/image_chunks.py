"""Encoding pictures together: in chunks of one size, so that a picture's features do not depend on its company.

A matrix product of another number of rows may take another kernel and round differently. With one size there is one
kernel, in which the rows do not see each other. And one size is one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from finepruner_lmms.engine.fixed.vision import vision_programs
from finepruner_lmms.engine.parts import check_model, device_of
from finepruner_lmms.engine.vision_tower import encode_chunk
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import VisionOutputs

CHUNK = 8
"""Pictures in a chunk on an accelerator. On a CPU, where eight pictures take eight times as long as one, it is one."""


class ChunkEncoder:
    """Encodes up to `size` prepared pictures at a time on the model's device, always as a chunk of exactly `size`.

    `execution` is that of `generate`: with `graphs`, and with `auto` on CUDA, the tower is recorded once and replayed,
    where it can be.
    """

    def __init__(self, model: LlavaForConditionalGeneration, size: int | None = None, execution: str = "auto") -> None:
        check_model(model)
        self._model = model
        self.device = device_of(model.model.vision_tower, model.device)
        self.size = size or (1 if self.device.type == "cpu" else CHUNK)
        self._pixels: Tensor | None = None
        self._recorded = execution == "graphs" or (execution == "auto" and self.device.type == "cuda")

    def prepare(self, pixels: Tensor) -> Tensor:
        """A picture `[3, S, S]` as `encode` copies it best: in the model's type, and pinned for an accelerator."""
        pixels = pixels.to(self._model.dtype)
        if self.device.type != "cuda":
            return pixels
        with torch.cuda.device(self.device):  # a thread starts at the first GPU, and pinning would open a context there
            return pixels.pin_memory()

    @torch.no_grad()
    def encode(self, pictures: Sequence[Tensor]) -> list[VisionOutputs]:
        """Each picture's outputs, as a batch of one; places that are left over hold copies of the last picture.

        `FieldError` for pictures that are too many or none.
        """
        if not 0 < len(pictures) <= self.size:
            raise FieldError("pictures", f"got {len(pictures)}; a chunk takes 1 to {self.size}", value=len(pictures))
        if self._pixels is None:
            self._pixels = torch.empty(self.size, *pictures[0].shape, dtype=self._model.dtype, device=self.device)
        for place, picture in enumerate(pictures):
            self._pixels[place].copy_(picture, non_blocking=True)
        if left_over := self.size - len(pictures):
            self._pixels[-left_over:] = self._pixels[len(pictures) - 1]
        outputs = self._encode(self._pixels)
        return [outputs.of_rows(slice(row, row + 1)) for row in range(len(pictures))]

    def _encode(self, pixels: Tensor) -> VisionOutputs:
        return vision_programs(self._model).encode(pixels) if self._recorded else encode_chunk(self._model, pixels)
