"""What Qwen2.5-VL and Qwen3-VL have in common: pictures of any size, merged 2 × 2, at positions in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.family import Encoded, Family, pixels_for
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners.vision_outputs import NOTHING_MORE, TowerWish

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finepruner_lmms.pruners.vision_outputs import VisionOutputs

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
    lacks: ClassVar[Mapping[str, str]] = {
        "cls_attention": "its vision tower has no CLS token",
        "cls_projected": "its vision tower has no CLS token",
        "early_cls_attention": "its vision tower has no CLS token",
        "image_embeds": "its vision tower is not that of CLIP",
    }
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

    def window_order(self, config: Any, grids: Tensor) -> Tensor | None:
        """The visual token at each place of the projector's input, where the tower reorders them."""
        return None

    def whole_attention(self, config: Any) -> int:
        """The last layer of the tower in which patches see their whole picture, counted from 1."""
        return config.vision_config.depth

    def apart(self, grid: tuple[int, int, int], video: bool) -> int:
        """Of how many images that are pruned by themselves a picture or video is made."""
        return 1

    def encode(
        self, model: Any, arguments: Mapping[str, Any], counts: Sequence[int] = (), wish: TowerWish = NOTHING_MORE
    ) -> Encoded:
        """All pictures in one row of patches, each of which sees its own; videos likewise."""
        outputs: dict[str, Any] = {}
        found: dict[str, list[VisionOutputs]] = {"image": [], "video": []}
        for kind, video in (("image", False), ("video", True)):
            if arguments.get(_KINDS[video][0]) is not None:
                outputs[kind], found[kind] = self._encode(model, arguments, video, wish)
        return Encoded(outputs, found["image"], found["video"])

    def _encode(
        self, model: Any, arguments: Mapping[str, Any], video: bool, wish: TowerWish
    ) -> tuple[Any, list[VisionOutputs]]:
        import torch

        from finepruner_lmms.engine import tower_reading
        from finepruner_lmms.engine.parts import device_of
        from finepruner_lmms.ops.precision import for_choosing
        from finepruner_lmms.ops.selection import fingerprint
        from finepruner_lmms.pruners.vision_outputs import VisionOutputs

        config, inner = model.config, model.model
        tower: Any = self.tower(model)
        pixels, places = (arguments[name] for name in _KINDS[video])
        late, early = self.whole_attention(config) - 1, tower_reading.early_layer(wish, len(tower.blocks))
        attention = tower_reading.attention_of(tower.blocks[late]) if wish.received else None
        before = None if early is None else tower_reading.attention_of(tower.blocks[early])
        with torch.no_grad(), tower_reading.watch(tower.merger, attention, before) as calls:
            encode = inner.get_video_features if video else inner.get_image_features
            outputs = encode(pixels_for(tower, pixels), places.to(device_of(tower, pixels.device)), return_dict=True)
        merging, attending, attending_early = calls
        merge = config.vision_config.spatial_merge_size**2
        patches = merging.first.unflatten(0, (-1, merge))
        order = self.window_order(config, places)
        back = None if order is None else order.argsort().to(patches.device)
        features = patches.flatten(1) if back is None else patches.flatten(1)[back]

        def per_token(attention: Any, call: tower_reading.Call) -> Tensor | None:
            if attention is None:
                return None
            with for_choosing(features.device):
                scores = tower_reading.received_in_parts(attention, call).unflatten(-1, (-1, merge)).mean(-1)
                return scores if back is None else scores[:, back]

        scores, early_scores = per_token(attention, attending), per_token(before, attending_early)
        images, token = [], 0
        for number, grid in enumerate(self.grids(config, arguments, video)):
            parts = self.apart(grid, video)
            length = grid[0] * grid[1] * grid[2] // parts
            whole = slice(token * merge, (token + length * parts) * merge)
            key = fingerprint(pixels[whole][None])
            for projected in outputs.pooler_output[number].split(length):
                own = slice(token, token + length)
                token += length
                images.append(
                    VisionOutputs(
                        features=features[None, own],
                        projected=projected[None],
                        received_attention=None if scores is None else scores[None, :, own],
                        early_received=None if early_scores is None else early_scores[None, :, own],
                        early=wish.early,
                        sample_keys=key.to(projected.device),
                        grid=(grid[0] // parts, *grid[1:]),
                    )
                )
        return outputs, images
