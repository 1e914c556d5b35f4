"""What Qwen2.5-VL and Qwen3-VL have in common: pictures of any size, merged 2 × 2, at positions in a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.family import Family
from finepruner_lmms.errors import FieldError

if TYPE_CHECKING:
    from torch import nn

_KINDS = {False: ("pixel_values", "image_grid_thw"), True: ("pixel_values_videos", "video_grid_thw")}


class QwenVL(Family):
    """A visual token is a square of patches, merged by the projector."""

    media: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_grid_thw",
        "pixel_values_videos",
        "video_grid_thw",
    )
    passes: ClassVar[tuple[str, ...]] = ("mm_token_type_ids",)
    grid_positions: ClassVar[bool] = True
    # as lmms-eval's own models of the family: at least 256 tokens of 28 × 28 pixels, at most 2,048
    evaluation: ClassVar[Mapping[str, str | int]] = {
        "conv": "chat_template",
        "min_pixels": 256 * 28 * 28,
        "max_pixels": 2048 * 28 * 28,
        "num_frames": 32,
    }

    def most_visual_tokens(self, config: Any) -> int:
        """16,384: what the released processors' `max_pixels` allow. The model itself has no limit."""
        return 16384

    def tower(self, model: Any) -> nn.Module:
        """It is called `visual` here."""
        return model.model.visual

    def grids(self, config: Any, arguments: Mapping[str, Any], video: bool) -> list[tuple[int, int, int]]:
        """Frames × rows × columns of the visual tokens of each image, or of each video."""
        pixels, name = _KINDS[video]
        if (grids := arguments.get(name)) is None:
            if arguments.get(pixels) is not None:
                raise FieldError(name, "missing", fix=f"pass what the processor returns with {pixels}")
            return []
        merge = config.vision_config.spatial_merge_size
        plain = grids.tolist() if hasattr(grids, "tolist") else grids
        return [(int(t), int(rows) // merge, int(columns) // merge) for t, rows, columns in plain]
