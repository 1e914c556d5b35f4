"""What a vision-side method may look at: the outputs of the vision tower, before the language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from finepruner_lmms.errors import FieldError
from finepruner_lmms.lazy import torch
from finepruner_lmms.ops.grid import image_side

if TYPE_CHECKING:
    from torch import Tensor

_WHY = {
    "cls_attention": "there is none in this vision tower, or none apart from the patches in the layer that LLaVA reads",
    "cls_projected": "this vision tower has no CLS token apart from its patches",
    "received_attention": "it is computed where a method asks for it; pass it",
    "early_received": "it is computed where a method asks for it; pass it",
    "early_cls_attention": "it is computed where a method asks for it, and the vision tower has a CLS token; pass it",
    "keys": "no layer of the vision tower made the patches that are projected, or it merges them",
    "image_embeds": "pass the patches in CLIP's joint space",
    "first_layer": "it is there where a method reads the question by embedding; pass it",
    "text_embeds": "pass the question as vectors, one [M, P] a row",
}


class FirstLayer(Protocol):
    """The attention of the language model's first layer, as far as it does not depend on where tokens stand."""

    def queries(self, tokens: Tensor) -> Tensor:
        """Of tokens `[..., D]` as they enter the language model, before rotation: `[..., H, head_dim]` in float32."""

    def keys(self, tokens: Tensor) -> Tensor:
        """The same, one for each query head."""

    def asked(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """`[B, H, N]` in float32 or better: what one query of each head, `[B, H, head_dim]`, finds in `[B, N, D]`.

        Its product with the keys, which need not be computed for it.
        """


@dataclass(frozen=True)
class TowerWish:
    """What a method wants the vision tower to say beyond what costs next to nothing: whole attention maps of layers.

    `received`: of the layer whose output is projected. `early`: of an earlier one, a layer counted from 1, or a share
    of the tower's depth. `unread`: nobody looks at the image, so that the tower need not run and zeros will do.
    """

    received: bool = False
    early: int | Fraction | None = None
    unread: bool = False

    def __bool__(self) -> bool:
        return self.received or self.early is not None or self.unread


NOTHING_MORE = TowerWish()


@dataclass(frozen=True)
class VisionOutputs:
    """The encoded images of a batch, one per row.

    Shapes: `features` `[B, N, C]` before the projector, `projected` `[B, N, D]` after it; of the same layer of the
    tower: `cls_attention` `[B, Hc, N]` the attention of the CLS token (a softmax with the CLS token in it), `keys`
    `[B, N, C/Hc]` the patches' attention keys, mean of heads, `cls_projected` `[B, 1, D]` the CLS token after the
    projector. `image_embeds` `[B, N, P]` and `text_embeds` (one `[M, P]` a row) are in the joint space of CLIP; for
    relevance by embedding, `text_embeds` are `[M, D]` word embeddings, and `first_layer` is what the language model's
    first layer asks and answers of them; for a method that `reads_words`, those of CLIP are its words and, last, the
    whole question. `projector` maps features to projected tokens.
    `received_attention` `[B, Hc, N]` is what the patches receive from all patches of their image, mean of the queries,
    in a late layer, where it was asked for (`TowerWish`); `early_received` and `early_cls_attention` are what
    `received_attention` and `cls_attention` are, of the earlier layer `early`. `grid`, the same for all images of
    the batch, is frames × rows × columns of the N tokens where they fill one; `tiled` tells that they fill none, as
    those of several tiles, which fill one after the other the grids of `sheets`, where these are known. `sample_keys`
    `[B]` int64 identify the content of each sample, for methods that draw at random; without them the draw follows
    `features`.
    """

    features: Tensor
    projected: Tensor
    cls_attention: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: list[Tensor] | None = None
    sample_keys: Tensor | None = None
    keys: Tensor | None = None
    cls_projected: Tensor | None = None
    projector: Callable[[Tensor], Tensor] | None = None
    first_layer: FirstLayer | None = None
    received_attention: Tensor | None = None
    early_received: Tensor | None = None
    early_cls_attention: Tensor | None = None
    early: int | Fraction | None = None
    grid: tuple[int, int, int] | None = None
    tiled: bool = False
    sheets: tuple[tuple[int, int, int], ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        """N."""
        return self.features.shape[1]

    @property
    def nbytes(self) -> int:
        """What the tensors take."""
        return sum(value.nbytes for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The fields that hold numbers, by name; `text_embeds` as one."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.text_embeds:
            named["text_embeds"] = torch.cat([text.flatten() for text in self.text_embeds])
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows × columns of the tokens, the frames of a video below each other; None where they fill no grid.

        Without `grid`, tokens that can be a square are one.
        """
        if self.grid is not None:
            return self.grid[0] * self.grid[1], self.grid[2]
        side = None if self.tiled else image_side(self.num_visual_tokens)
        return None if side is None else (side, side)

    @property
    def frames(self) -> tuple[int, int, int] | None:
        """Frames × rows × columns of the tokens; None where they fill no grid. As `shape`, frames apart."""
        return self.grid or (None if self.shape is None else (1, *self.shape))

    @property
    def grids(self) -> tuple[tuple[int, int, int], ...]:
        """Frames × rows × columns of all grids that the tokens fill, one after the other; empty where not known."""
        return self.sheets or (() if self.frames is None else (self.frames,))

    def need(self, name: str, method: str) -> Any:
        """The field `name`; `FieldError` saying who needs it if it is not there."""
        if (value := getattr(self, name)) is None:
            raise FieldError(name, f"method {method!r} needs it, and it is missing: {_WHY[name]}")
        return value

    def project(self, features: Tensor) -> Tensor:
        """`features` `[B, M, C]` through the model's projector: `[B, M, D]`."""
        if self.projector is None:
            raise FieldError("projector", "missing; a method that makes new tokens before the projector needs it")
        return self.projector(features)

    def replace(self, **changes: Any) -> VisionOutputs:
        """The same images with some fields changed."""
        return replace(self, **changes)

    def map(self, function: Callable[[Tensor], Tensor]) -> VisionOutputs:
        """The same images with `function` applied to every tensor."""
        changed: dict[str, Any] = {name: function(value) for name, value in self.tensors().items()}
        if self.text_embeds is not None:
            changed["text_embeds"] = [function(text) for text in self.text_embeds]
        return replace(self, **changed)

    def of_rows(self, rows: list[int] | slice) -> VisionOutputs:
        """Some of the images, with all that belongs to them."""
        chosen: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, torch.Tensor):
                chosen[f.name] = value[rows]
            elif isinstance(value, list):
                chosen[f.name] = value[rows] if isinstance(rows, slice) else [value[row] for row in rows]
        return replace(self, **chosen)

    @classmethod
    def join(cls, parts: Sequence[VisionOutputs]) -> VisionOutputs:
        """The images of several batches, in order."""
        joined: dict[str, Any] = {}
        for f in fields(cls):
            values = [getattr(part, f.name) for part in parts]
            if isinstance(values[0], torch.Tensor):
                joined[f.name] = torch.cat(values)
            elif isinstance(values[0], list):
                joined[f.name] = [text for value in values for text in value]
            else:
                joined[f.name] = values[0]
        return cls(**joined)
