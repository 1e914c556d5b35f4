"""Qwen3-VL: deep features of the tower enter the first decoder layers; the steps of a video stand apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from finepruner_lmms.engine.families.family import ImageSpan
from finepruner_lmms.engine.families.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    """`Qwen3VLForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen3_vl"
    model_class: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    title: ClassVar[str] = "Qwen3-VL"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_vl_text"})

    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """One grid an image. Of a video, every step is told by its time, so it stands and is pruned by itself."""
        images = [ImageSpan(t * h * w, grid=(t, h, w)) for t, h, w in self.grids(config, arguments, False)]
        return images + [
            ImageSpan(rows * columns, grid=(1, rows, columns), video=True)
            for steps, rows, columns in self.grids(config, arguments, True)
            for _ in range(steps)
        ]

    def apart(self, grid: tuple[int, int, int], video: bool) -> int:
        """The steps of a video."""
        return grid[0] if video else 1
