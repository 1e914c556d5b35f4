"""LLaVA-1.5: one picture, one square of patches, one Llama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from finepruner_lmms.engine.families.family import Encoded, Family, ImageSpan, Run, misfit
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish


class Llava(Family):
    """`LlavaForConditionalGeneration` with a CLIP tower and a Llama (LLaVA-1.5)."""

    model_type: ClassVar[str] = "llava"
    model_class: ClassVar[str] = "LlavaForConditionalGeneration"
    title: ClassVar[str] = "LLaVA-1.5"
    decoders: ClassVar[frozenset[str]] = frozenset({"llama"})
    towers: ClassVar[frozenset[str]] = frozenset({"clip_vision_model"})
    media: ClassVar[tuple[str, ...]] = ("pixel_values",)
    has_cls: ClassVar[bool] = True
    evaluation: ClassVar[Mapping[str, str | int]] = {"conv": "vicuna_v1", "image_aspect_ratio": "pad"}

    def most_visual_tokens(self, config: Any) -> int:
        """576 for LLaVA-1.5."""
        return self.num_visual_tokens(config)

    def num_visual_tokens(self, config: Any) -> int:
        """Every picture is one square."""
        vision = config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return patches + (config.vision_feature_select_strategy == "full")

    def placeholders(self, config: Any) -> dict[str, int]:
        """No videos."""
        return {"image": config.image_token_id}

    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """All images are alike, so their number follows from the placeholders: see `spans`."""
        return ()

    def spans(self, config: Any, runs: Sequence[Run], arguments: Mapping[str, Any]) -> list[list[ImageSpan]]:
        """As many images as fit into each run."""
        count = self.num_visual_tokens(config)
        side = round(count**0.5)
        one = ImageSpan(count, grid=(1, side, side) if side * side == count else None)
        for run in runs:
            if run.length % count:
                raise misfit(run, [one] * max(run.length // count, 1))
        return [[one] * (run.length // count) for run in runs]

    def encode(
        self, model: Any, arguments: Mapping[str, Any], counts: Sequence[int] = (), wish: TowerWish = NOTHING_MORE
    ) -> Encoded:
        """The tower and the projector, one image per entry of `pixel_values` `[images, 3, S, S]`."""
        from finepruner_lmms.engine.vision_tower import encode_images, encoder_outputs

        vision = encode_images(model, arguments["pixel_values"], wish)
        images = [vision.of_rows(slice(row, row + 1)) for row in range(len(vision.projected))]
        return Encoded(encoder_outputs(vision.projected)["mm_encoder_outputs"], images)
