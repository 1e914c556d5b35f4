"""Qwen2.5-VL: a tower with attention in windows, and positions in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.family import ImageSpan
from finepruner_lmms.engine.families.qwen_vl import QwenVL

if TYPE_CHECKING:
    from torch import Tensor


class Qwen25VL(QwenVL):
    """`Qwen2_5_VLForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    model_class: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    title: ClassVar[str] = "Qwen2.5-VL"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2_5_vl_text"})
    media: ClassVar[tuple[str, ...]] = (*QwenVL.media, "second_per_grid_ts")

    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """One grid an image, and one a video."""
        return [
            ImageSpan(t * rows * columns, grid=(t, rows, columns), video=video)
            for video in (False, True)
            for t, rows, columns in self.grids(config, arguments, video)
        ]

    def window_order(self, config: Any, grids: Tensor) -> Tensor:
        """By windows, as transformers orders them."""
        from transformers.vision_utils import get_vision_window_index

        vision = config.vision_config
        order, _ = get_vision_window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)
        return order

    def whole_attention(self, config: Any) -> int:
        """In the others patches see their window."""
        return max(config.vision_config.fullatt_block_indexes) + 1
