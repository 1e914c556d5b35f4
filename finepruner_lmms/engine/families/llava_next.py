"""LLaVA-NeXT (1.6): LLaVA-1.5's tower on tiles of any resolution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from finepruner_lmms.engine.families.any_resolution import AnyResolution
from finepruner_lmms.engine.families.family import check_features

if TYPE_CHECKING:
    from torch import Tensor


class LlavaNext(AnyResolution):
    """`LlavaNextForConditionalGeneration` with a CLIP tower; Vicuna, Mistral, Llama 3, Yi or Qwen1.5."""

    model_type: ClassVar[str] = "llava_next"
    model_class: ClassVar[str] = "LlavaNextForConditionalGeneration"
    title: ClassVar[str] = "LLaVA-NeXT"
    decoders: ClassVar[frozenset[str]] = frozenset({"llama", "mistral", "qwen2"})
    towers: ClassVar[frozenset[str]] = frozenset({"clip_vision_model"})
    media: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    has_cls: ClassVar[bool] = True

    def check(self, config: Any) -> None:
        """CLIP's patches without its CLS token."""
        super().check(config)
        check_features(config, "default", self.title)

    def most_visual_tokens(self, config: Any) -> int:
        """2,880: the whole picture and four tiles, without newlines, as papers count."""
        return self.side(config) ** 2 * (1 + max(rows * columns for rows, columns in self.most_tiles(config)))

    def placeholders(self, config: Any) -> dict[str, int]:
        """No videos."""
        return {"image": config.image_token_id}

    def pack(self, config: Any, tiles: Tensor, size: tuple[int, int], newline: Tensor) -> Tensor:
        """`LlavaNextModel.pack_image_features`, which reads nothing of the model but its configuration."""
        from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

        model: Any = SimpleNamespace(config=config)
        strategy = config.vision_feature_select_strategy
        packed, _ = LlavaNextModel.pack_image_features(model, [tiles], [list(size)], strategy, newline)
        return packed[0]
