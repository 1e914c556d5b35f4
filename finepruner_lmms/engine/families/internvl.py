"""InternVL3 (and 3.5): tiles of one size, each shuffled from 2 × 2 patches to one visual token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.any_resolution import by_heads
from finepruner_lmms.engine.families.family import (
    Encoded,
    Family,
    ImageSpan,
    Run,
    View,
    check_features,
    misfit,
    pixels_for,
)
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish

if TYPE_CHECKING:
    from torch import Tensor

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
    lacks: ClassVar[Mapping[str, str]] = {
        "cls_projected": "the projector takes four patches, and the CLS token is as wide as one",
        "image_embeds": "InternViT is no tower of CLIP",
    }
    evaluation: ClassVar[Mapping[str, str | int]] = {"conv": "chat_template", "max_tiles": 12, "num_frames": 32}

    def check(self, config: Any) -> None:
        """Patches of one layer, without the CLS token."""
        super().check(config)
        check_features(config, "default", self.title)

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

    def views(self, config: Any, span: ImageSpan, size: tuple[int, int]) -> tuple[View, ...]:
        """The tiles row by row, then the whole picture."""
        side = self.tile_side(config)
        count = span.length // side**2 - 1
        if count < 1:
            return super().views(config, span, size)
        rows, columns = arrangement(count, size)
        tiles = [
            View(side, side, (x / columns, y / rows, (x + 1) / columns, (y + 1) / rows), sheet=1)
            for y in range(rows)
            for x in range(columns)
        ]
        return (*tiles, View(side, side))

    def encode(
        self, model: Any, arguments: Mapping[str, Any], counts: Sequence[int] = (), wish: TowerWish = NOTHING_MORE
    ) -> Encoded:
        """Each tile by itself; what is said of four patches goes to the visual token that they become, as their mean.

        The CLS token is as wide as one patch, so the projector cannot take it.
        """
        import torch

        from finepruner_lmms.engine.tiles import read_tiles
        from finepruner_lmms.ops.selection import fingerprint
        from finepruner_lmms.pruners.vision_outputs import VisionOutputs

        config, inner, tower = model.config, model.model, self.tower(model)
        pixels, per_tile, side = arguments["pixel_values"], self.tile_side(config) ** 2, self.tile_side(config)

        def run() -> Any:
            return inner.get_image_features(pixels_for(tower, pixels), return_dict=True)

        def shuffle(values: Tensor) -> Tensor:
            """`[T, patches, K]` → `[1, N, K]`."""
            width = round(values.shape[1] ** 0.5)
            shuffled = inner.pixel_shuffle(values.unflatten(1, (width, width)), config.downsample_ratio)
            return shuffled.unflatten(-1, (-1, values.shape[-1])).mean(-2).flatten(0, 2)[None]

        with torch.no_grad():
            outputs, tiles = read_tiles(inner, tower, config.vision_feature_layer, True, wish, run)
        images, start = [], 0
        for count in (number // per_tile for number in counts):
            one, own = tiles.of(start, start + count), slice(start, start + count)
            projected = outputs.pooler_output[own].flatten(0, 1)[None]
            images.append(
                VisionOutputs(
                    features=one.features.flatten(0, 1)[None],
                    projected=projected,
                    cls_attention=by_heads(shuffle, one.cls_attention),
                    received_attention=by_heads(shuffle, one.received),
                    early_received=by_heads(shuffle, one.early_received),
                    early_cls_attention=by_heads(shuffle, one.early_cls),
                    early=wish.early,
                    keys=None if one.keys is None else shuffle(one.keys),
                    sample_keys=fingerprint(pixels[own][None]).to(projected.device),
                    projector=one.projector,
                    grid=(1, side, side) if count == 1 else None,
                    tiled=count > 1,
                    sheets=((1, side, side),) * count,
                )
            )
            start += count
        return Encoded({"image": outputs}, images)


def arrangement(tiles: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows × columns in which the processor cuts a picture of `size` (width, height) into so many tiles.

    It takes the nearest aspect ratio of all grids that are allowed; how many tiles there are says which of them remain.
    """
    ways = [(tiles // columns, columns) for columns in range(1, tiles + 1) if tiles % columns == 0]
    return min(ways, key=lambda way: abs(size[0] / size[1] - way[1] / way[0]))
