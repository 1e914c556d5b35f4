"""InternVL3 (and 3.5): tiles of one size, each shuffled from 2 × 2 patches to one visual token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from finepruner_lmms.engine.families.any_resolution import check_layer
from finepruner_lmms.engine.families.family import Family, ImageSpan, Run, misfit
from finepruner_lmms.errors import FieldError

_MOST_TILES = 13  # the released processor's twelve, and the whole picture


class InternVL(Family):
    """`InternVLForConditionalGeneration` (checkpoints named `-hf`). The frames of a video are images."""

    model_type: ClassVar[str] = "internvl"
    model_class: ClassVar[str] = "InternVLForConditionalGeneration"
    title: ClassVar[str] = "InternVL3"
    decoders: ClassVar[frozenset[str]] = frozenset({"llama", "qwen2", "qwen3"})
    towers: ClassVar[frozenset[str]] = frozenset({"internvl_vision"})
    media: ClassVar[tuple[str, ...]] = ("pixel_values",)
    has_cls: ClassVar[bool] = True
    evaluation: ClassVar[Mapping[str, str | int]] = {"conv": "chat_template", "max_tiles": 12, "num_frames": 32}

    def check(self, config: Any) -> None:
        """Patches of one layer, without the CLS token."""
        super().check(config)
        check_layer(config)
        if config.vision_feature_select_strategy != "default":
            raise FieldError(
                "vision_feature_select_strategy",
                f"got {config.vision_feature_select_strategy!r}; InternVL3 is supported with 'default'",
                value=config.vision_feature_select_strategy,
            )

    def tile_side(self, config: Any) -> int:
        """Visual tokens along one side of a tile."""
        size, patch = config.vision_config.image_size, config.vision_config.patch_size
        size, patch = (one if isinstance(one, int) else one[0] for one in (size, patch))
        return int(size // patch * config.downsample_ratio)

    def most_visual_tokens(self, config: Any) -> int:
        """3,328: twelve tiles of 256 and the whole picture."""
        return _MOST_TILES * self.tile_side(config) ** 2

    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """Nothing in a call says which tiles belong together but the prompt, where each image stands apart."""
        return ()

    def spans(self, config: Any, runs: Sequence[Run], arguments: Mapping[str, Any]) -> list[list[ImageSpan]]:
        """One image each run, of as many tiles as fit."""
        side = self.tile_side(config)
        tile = ImageSpan(side * side, grid=(1, side, side))
        for run in runs:
            if run.length % tile.length:
                raise misfit(run, [tile] * max(run.length // tile.length, 1))
        shown, pixels = sum(run.length for run in runs) // tile.length, arguments.get("pixel_values")
        if pixels is not None and len(pixels) != shown:
            raise FieldError(
                "pixel_values",
                f"holds {len(pixels)} tiles, but input_ids shows {shown}",
                fix="expand the placeholders of the prompt with the processor",
            )
        return [[tile if run.length == tile.length else ImageSpan(run.length)] for run in runs]
