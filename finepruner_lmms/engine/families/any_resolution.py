"""What LLaVA-NeXT and LLaVA-OneVision have in common: a picture in tiles, unpadded, with a newline after each row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.family import Encoded, Family, ImageSpan, View, pixels_for
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish

if TYPE_CHECKING:
    from torch import Tensor

    from finepruner_lmms.pruners.vision_outputs import VisionOutputs


class AnyResolution(Family):
    """A picture is seen as a whole and in tiles; the model's own packing says which of their tokens are left."""

    described_by: ClassVar[tuple[str, ...]] = ("image_sizes",)
    """The arguments of `get_image_features` beside the pixels."""

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
            places = tuple(newlines.nonzero().flatten().tolist())
            spans.append(ImageSpan(len(newlines), places, self.grid_of(config, tiles)))
        return spans

    def grid_of(self, config: Any, tiles: int) -> tuple[int, int, int] | None:
        """The grid of an image that is one tile."""
        return (1, self.side(config), self.side(config)) if tiles == 1 else None

    def views(self, config: Any, span: ImageSpan, size: tuple[int, int]) -> tuple[View, ...]:
        """The whole picture, then the tiles as one grid: unpadded, with a newline after each row."""
        side, newlines = self.side(config), span.separators
        if span.grid is not None:
            return super().views(config, span, size)
        rows = len(newlines)
        columns = (span.length - side * side) // rows - 1 if rows else 0
        ends = tuple(side * side + columns + row * (columns + 1) for row in range(rows))
        return (View(side, side), View(rows, columns, sheet=1)) if columns > 0 and newlines == ends else ()

    def newlines(self, config: Any, size: tuple[int, int], tiles: int) -> Tensor:
        """Which tokens of a packed image are newlines: `[length]` bool."""
        import torch

        nothing = torch.zeros(tiles, self.side(config) ** 2, 1)
        return self.pack(config, nothing, size, torch.ones(1)).squeeze(1) > 0

    def encode(
        self, model: Any, arguments: Mapping[str, Any], counts: Sequence[int] = (), wish: TowerWish = NOTHING_MORE
    ) -> Encoded:
        """Each tile by itself; what is said of its patches is packed as the projected tokens are."""
        pictures, outputs = self.pictures(model.config, arguments), {}
        images: list[VisionOutputs] = []
        if pictures and (pixels := arguments.get("pixel_values")) is not None:
            pixels = [tiles[:count] for tiles, (_, count) in zip(pixels, pictures, strict=True)]
            outputs["image"], images = self._encode_images(model, arguments, pixels, wish)
        return Encoded(outputs, images)

    def _encode_images(
        self, model: Any, arguments: Mapping[str, Any], pixels: list[Tensor], wish: TowerWish
    ) -> tuple[Any, list[VisionOutputs]]:
        import torch

        from finepruner_lmms.engine.tiles import read_tiles
        from finepruner_lmms.ops.selection import fingerprint
        from finepruner_lmms.pruners.vision_outputs import VisionOutputs

        config, inner = model.config, model.model
        tower, known = self.tower(model), {name: arguments[name] for name in self.described_by if name in arguments}

        def run() -> Any:
            joined = pixels_for(tower, torch.cat(pixels))
            return inner.get_image_features(joined, return_dict=True, **known)

        with torch.no_grad():
            outputs, tiles = read_tiles(inner, tower, config.vision_feature_layer, self.has_cls, wish, run)
        images, start = [], 0
        pictures = self.pictures(config, arguments)
        spans = self.described(config, arguments)[: len(pictures)]  # videos come behind
        for (size, count), span, own, packed in zip(pictures, spans, pixels, outputs.pooler_output, strict=True):
            patches = torch.ones(span.length, dtype=torch.bool)
            patches[list(span.separators)] = False
            patches = patches.to(packed.device)

            def pack(values: Tensor, size: Any = size, patches: Tensor = patches) -> Tensor:
                packed = self.pack(config, values, size, values.new_zeros(values.shape[-1]))
                return packed.to(patches.device)[patches][None]

            one = tiles.of(start, start + count)
            start += count
            images.append(
                VisionOutputs(
                    features=pack(one.features),
                    projected=packed[patches][None],
                    cls_attention=by_heads(pack, one.cls_attention),
                    received_attention=by_heads(pack, one.received),
                    early_received=by_heads(pack, one.early_received),
                    early_cls_attention=by_heads(pack, one.early_cls),
                    early=wish.early,
                    keys=None if one.keys is None else pack(one.keys),
                    # of the first tile, which is the whole picture
                    cls_projected=None if one.cls is None else one.projector(one.cls[:1]).to(packed.device),
                    sample_keys=fingerprint(own[None]).to(packed.device),
                    projector=one.projector,
                    grid=self.grid_of(config, count),
                    tiled=count > 1,
                    sheets=tuple((1, view.rows, view.columns) for view in self.views(config, span, size)),
                )
            )
        return outputs, images


def by_heads(change: Callable[[Tensor], Tensor], attention: Tensor | None) -> Tensor | None:
    """Attention `[T, Hc, n]`, where there is any, through a change of `[T, n, Hc]` to `[1, N, Hc]`: `[1, Hc, N]`."""
    return None if attention is None else change(attention.transpose(1, 2).contiguous()).transpose(1, 2)


def _plain(values: Any) -> Iterable[Any]:
    """Numbers of the host, of a tensor or of lists."""
    return values.tolist() if hasattr(values, "tolist") else values
