"""LLaVA-OneVision: tiles of any resolution, several images, and videos, with a SigLIP tower."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.any_resolution import AnyResolution, by_heads
from finepruner_lmms.engine.families.family import Encoded, ImageSpan, check_features, pixels_for
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish

if TYPE_CHECKING:
    from torch import Tensor


class LlavaOnevision(AnyResolution):
    """`LlavaOnevisionForConditionalGeneration` with a SigLIP tower and a Qwen2."""

    model_type: ClassVar[str] = "llava_onevision"
    model_class: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"
    title: ClassVar[str] = "LLaVA-OneVision"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2"})
    towers: ClassVar[frozenset[str]] = frozenset({"siglip_vision_model"})
    media: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "batch_num_images",
        "pixel_values_videos",
        "image_sizes_videos",
    )
    lacks: ClassVar[Mapping[str, str]] = {
        "cls_attention": "SigLIP has no CLS token",
        "cls_projected": "SigLIP has no CLS token",
        "image_embeds": "SigLIP's text tower is not that of CLIP",
    }
    described_by: ClassVar[tuple[str, ...]] = ("image_sizes", "batch_num_images")
    evaluation: ClassVar[Mapping[str, str | int]] = {"conv": "chat_template", "num_frames": 32}

    def check(self, config: Any) -> None:
        """All of SigLIP's patches; it has no CLS token."""
        super().check(config)
        check_features(config, "full", self.title)

    def most_visual_tokens(self, config: Any) -> int:
        """The whole picture and the largest grid of tiles, which is shrunk to about nine (`anyres_max_9`)."""
        side = self.side(config)
        return side**2 + max(self._shrunk(config, *grid) for grid in self.most_tiles(config))

    def _shrunk(self, config: Any, rows: int, columns: int) -> int:
        """The tokens of a grid of tiles that the picture fills, after the model's interpolation."""
        height, width = rows * self.side(config), columns * self.side(config)
        ratio = math.sqrt(rows * columns / int(config.vision_aspect_ratio.removeprefix("anyres_max_")))
        return int(height // ratio) * int(width // ratio) if ratio > 1.1 else height * width

    def alone(self, arguments: Mapping[str, Any], count: int) -> Sequence[bool]:
        """Only an image that is its sample's only one is cut into tiles."""
        samples = arguments.get("batch_num_images")
        if samples is None:
            return [True] * count
        alone = [int(images) == 1 for images in samples for _ in range(int(images))]
        if len(alone) != count:
            raise FieldError(
                "batch_num_images", f"counts {len(alone)} images, but image_sizes describes {count}", value=samples
            )
        return alone

    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """Images, and videos: of each frame a coarser grid, and one newline at the end."""
        spans = list(super().described(config, arguments))
        if (videos := arguments.get("pixel_values_videos")) is not None:
            side = math.ceil(self.side(config) / 2)
            for frames in (len(video) for video in videos):
                count = frames * side * side
                spans.append(ImageSpan(count + 1, (count,), (frames, side, side), video=True))
        return spans

    def encode(
        self, model: Any, arguments: Mapping[str, Any], counts: Sequence[int] = (), wish: TowerWish = NOTHING_MORE
    ) -> Encoded:
        """Images as tiles; of a video, what is said of patches is pooled as the projected tokens are."""
        found = super().encode(model, arguments, counts, wish)
        if (pixels := arguments.get("pixel_values_videos")) is None:
            return found
        import torch

        from finepruner_lmms.engine.tiles import read_tiles
        from finepruner_lmms.ops.selection import fingerprint
        from finepruner_lmms.pruners.vision_outputs import VisionOutputs

        config, inner, tower = model.config, model.model, self.tower(model)

        def run() -> Any:
            return inner.get_video_features(pixels_for(tower, pixels), return_dict=True)

        def pool(values: Tensor) -> Tensor:
            return inner.apply_pooling(values).flatten(0, 1)[None]

        with torch.no_grad():
            outputs, frames = read_tiles(inner, tower, config.vision_feature_layer, False, wish, run)
        videos, count = [], pixels.shape[1]
        for number, packed in enumerate(outputs.pooler_output):
            one = frames.of(number * count, (number + 1) * count)
            side = math.ceil(self.side(config) / 2)
            videos.append(
                VisionOutputs(
                    features=pool(one.features),
                    projected=packed[None, :-1],
                    received_attention=by_heads(pool, one.received),
                    early_received=by_heads(pool, one.early_received),
                    early_cls_attention=by_heads(pool, one.early_cls),
                    early=wish.early,
                    keys=None if one.keys is None else pool(one.keys),
                    sample_keys=fingerprint(pixels[number : number + 1]).to(packed.device),
                    projector=one.projector,
                    grid=(count, side, side),
                )
            )
        return Encoded(found.outputs | {"video": outputs}, found.images, videos)

    def pack(self, config: Any, tiles: Tensor, size: tuple[int, int], newline: Tensor) -> Tensor:
        """`LlavaOnevisionModel.pack_image_features`, which reads nothing of the model but its configuration."""
        from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

        model: Any = SimpleNamespace(config=config)
        aspect = config.vision_aspect_ratio
        packed, _ = LlavaOnevisionModel.pack_image_features(model, [tiles], [list(size)], newline, aspect)
        return packed[0]
