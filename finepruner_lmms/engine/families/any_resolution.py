"""What LLaVA-NeXT and LLaVA-OneVision have in common: a picture in tiles, unpadded, with a newline after each row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finepruner_lmms.engine.families.family import Family, ImageSpan
from finepruner_lmms.errors import FieldError

if TYPE_CHECKING:
    from torch import Tensor


class AnyResolution(Family):
    """A picture is seen as a whole and in tiles; the model's own packing says which of their tokens are left."""

    def side(self, config: Any) -> int:
        """Patches along one side of a tile."""
        return config.vision_config.image_size // config.vision_config.patch_size

    def most_tiles(self, config: Any) -> list[tuple[int, int]]:
        """The grids of tiles that there are: rows × columns."""
        size = config.vision_config.image_size
        return [(height // size, width // size) for height, width in config.image_grid_pinpoints]

    @abstractmethod
    def pack(self, config: Any, tiles: Tensor, size: tuple[int, int], newline: Tensor) -> Tensor:
        """The model's own packing of one image: `[tiles, patches, C]`, a newline `[C]` → `[length, C]`."""

    def tiles(self, config: Any, size: tuple[int, int], alone: bool) -> int:
        """Into how many tiles the processor cuts a picture of `size` (height, width)."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        pinpoints = [list(one) for one in config.image_grid_pinpoints]
        return image_size_to_num_patches(list(size), pinpoints, config.vision_config.image_size) if alone else 1

    def pictures(self, config: Any, arguments: Mapping[str, Any]) -> list[tuple[tuple[int, int], int]]:
        """Of each image of a call its height and width, and its number of tiles."""
        sizes = arguments.get("image_sizes")
        if sizes is None:
            if arguments.get("pixel_values") is not None:
                raise FieldError("image_sizes", "missing", fix="pass what the processor returns with pixel_values")
            return []
        sizes = [(int(height), int(width)) for height, width in _plain(sizes)]
        alone = self.alone(arguments, len(sizes))
        return [(size, self.tiles(config, size, one)) for size, one in zip(sizes, alone, strict=True)]

    def alone(self, arguments: Mapping[str, Any], count: int) -> Sequence[bool]:
        """Which images are cut into tiles."""
        return [True] * count

    def described(self, config: Any, arguments: Mapping[str, Any]) -> Sequence[ImageSpan]:
        """By a marker that goes through the model's packing in place of features."""
        spans = []
        for size, tiles in self.pictures(config, arguments):
            newlines = self.newlines(config, size, tiles)
            side = self.side(config)
            grid = (1, side, side) if tiles == 1 else None
            spans.append(ImageSpan(len(newlines), tuple(newlines.nonzero().flatten().tolist()), grid))
        return spans

    def newlines(self, config: Any, size: tuple[int, int], tiles: int) -> Tensor:
        """Which tokens of a packed image are newlines: `[length]` bool."""
        import torch

        nothing = torch.zeros(tiles, self.side(config) ** 2, 1)
        return self.pack(config, nothing, size, torch.ones(1)).squeeze(1) > 0

    def check_features(self, config: Any, strategy: str) -> None:
        """Raise `FieldError` unless all patches of one layer of the tower, and they alone, are projected."""
        if config.vision_feature_select_strategy != strategy:
            raise FieldError(
                "vision_feature_select_strategy",
                f"got {config.vision_feature_select_strategy!r}; {self.title} is supported with {strategy!r}",
                value=config.vision_feature_select_strategy,
            )
        check_layer(config)


def check_layer(config: Any) -> None:
    """Raise `FieldError` where features of several layers of the tower are joined."""
    if not isinstance(config.vision_feature_layer, int):
        raise FieldError(
            "vision_feature_layer",
            f"{config.vision_feature_layer} joins several layers; only a single one is supported",
            value=config.vision_feature_layer,
        )


def _plain(values: Any) -> Iterable[Any]:
    """Numbers of the host, of a tensor or of lists."""
    return values.tolist() if hasattr(values, "tolist") else values
