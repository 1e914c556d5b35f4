"""What a vision-side method may look at: the outputs of the vision tower, before the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class VisionOutputs:
    """The encoded images of a batch, one a row.

    Shapes: `features` `[B, N, C]` before the projector, `projected` `[B, N, D]` after it, `cls_attention`
    `[B, Hc, N]` the attention of the CLS token, `image_embeds` `[B, N, P]` and `text_embeds` (one `[M, P]` a row) in
    the joint space of CLIP. `sample_keys` `[B]` int64 identify the content of each sample, for methods that draw at
    random; without them the draw follows `features`.
    """

    features: Tensor
    projected: Tensor
    cls_attention: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: list[Tensor] | None = None
    sample_keys: Tensor | None = None

    @property
    def num_visual_tokens(self) -> int:
        """N."""
        return self.features.shape[1]

    def with_keys(self, sample_keys: Tensor) -> VisionOutputs:
        """The same images with other sample keys."""
        return replace(self, sample_keys=sample_keys)
