"""What a decoder-side method sees, and what it answers: plain tensors over the visual tokens of each image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from finepruner_lmms.errors import FieldError
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MOST_GUIDES = 8
"""Of so many heads, the best, the attention is kept to be shown: all of it would be as large as a layer's scores."""
Source: TypeAlias = "Tensor | Callable[[], Tensor]"


class DecoderContext:
    """What a decoder-side method may look at when it chooses, before decoder layer `layer`.

    Shapes: B rows of the batch, H query heads, V visual tokens (the N of the image, then those merged at earlier
    stages), T the longest text after an image, D the model's width. Every attention is a softmax over the whole row
    in float32, cut to the visual columns, 0 where a token is not `present`. `present` `[B, V]` tells the tokens still
    there: none in a row without an image; `count` how many an image still has. `required` `[B, V]` is one of them in a
    row whose prompt ends with the image: the token whose logits are read, which is kept whatever its score (None where
    every row ends with text). `num_layers` is the model's depth (None outside of one), `merged` how many new tokens
    the stage promises. What is not read is not computed; a source may be a function.
    """

    def __init__(
        self,
        layer: int,
        attention: Source,
        present: Tensor,
        count: int | None = None,
        required: Tensor | None = None,
        text_slices: Callable[[], Iterator[tuple[slice, Tensor]]] | None = None,
        attention_in: Callable[[int], Tensor] | None = None,
        **sources: Source,
    ) -> None:
        self.layer, self.present, self.required = layer, present, required
        self.count = present.shape[1] if count is None else count
        self._sources: dict[str, Source] = {"attention": attention, **sources}
        self._text_slices, self._attention_in = text_slices, attention_in
        self._once: dict[str, Any] = {}
        self.num_layers: int | None = None
        self.merged = 0

    @property
    def attention(self) -> Tensor:
        """`[B, H, V]`: of the last prompt token, in the layer before."""
        return self._read("attention")

    def attention_in(self, layer: int) -> Tensor:
        """`[B, H, V]`: of the last prompt token, in decoder layer `layer`, one that the method `reads_layers` of.

        Tokens that were dropped since, or made, are 0 there.
        """
        if layer == self.layer - 1:
            return self.attention
        name = f"attention in layer {layer}"
        if self._attention_in is not None and name not in self._sources:
            self._sources[name] = self._attention_in(layer)
        return self._read(name)

    @property
    def next_attention(self) -> Tensor:
        """`[B, H, V]`: of the last prompt token, as `layer` itself would compute it with nothing dropped."""
        return self._read("next_attention")

    @property
    def text_attention(self) -> Tensor:
        """`[B, H, T, V]`: of the text after the image, in the layer before; see `text_present`.

        Large for a long text: `text_slices` and `weighted_text` need a part of it at a time.
        """
        if self._text_slices is not None and "text_attention" not in self._sources:
            words, (batch, visual) = self.text_present.shape[1], self.present.shape
            whole = self.attention.new_zeros(batch, self.attention.shape[1], words, visual)
            for part, rows in self._text_slices():
                whole[:, :, part] = rows
            self._sources["text_attention"] = whole
        return self._read("text_attention")

    def text_slices(self) -> Iterator[tuple[slice, Tensor]]:
        """`text_attention`, a few of its T at a time: which, and `[B, H, t, V]`. Nothing for T = 0."""
        if self._text_slices is not None and "text_attention" not in self._sources:
            yield from self._text_slices()
        elif self.text_attention.shape[2]:
            yield slice(0, self.text_attention.shape[2]), self.text_attention

    def weighted_text(self, weights: Tensor) -> Tensor:
        """The rows of `text_attention` added up by `weights` `[B, T]`: `[B, H, V]`. T is at least 1."""
        parts = [
            torch.einsum("bhtv,bt->bhv", rows, weights[:, part].to(rows.dtype)) for part, rows in self.text_slices()
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def text_mass(self) -> Tensor:
        """`[B, T]`: the attention of the text after the image to all of the image, the heads' added up."""
        parts = {part.start: rows.sum((1, 3)) for part, rows in self.text_slices()}
        return torch.cat([parts[start] for start in sorted(parts)], dim=1)

    @property
    def text_present(self) -> Tensor:
        """`[B, T]` bool: which of the T are text after the image of their row; shorter texts stand on the right."""
        return self._read("text_present")

    @property
    def prefix_lengths(self) -> Tensor:
        """`[B]`: tokens before the image. By causality, none of them attends to it."""
        return self._read("prefix_lengths")

    @property
    def hidden(self) -> Tensor:
        """`[B, V, D]`: the visual tokens on their way into `layer`."""
        return self._read("hidden")

    @property
    def values(self) -> Tensor:
        """`[B, H, V, head_dim]`: the visual tokens' values for each query head, in the layer before."""
        return self._read("values")

    @property
    def text_output(self) -> Tensor:
        """`[B, H, max(T, 1), head_dim]`: what the attention of the layer before makes of the text after the image.

        In float32, before the output projection; where no row has text, of the last prompt token.
        """
        return self._read("text_output")

    @property
    def rotation(self) -> Tensor:
        """`[B, 2, V]`: the mean cosine and the mean sine of the angles by which the visual tokens' keys are rotated."""
        return self._read("rotation")

    @property
    def visual_embeds(self) -> Tensor:
        """`[B, N, D]`: the projected visual tokens, as they enter the language model."""
        return self._read("visual_embeds")

    @property
    def text_embeds(self) -> Tensor:
        """`[B, T, D]`: the input embeddings of the text after the image."""
        return self._read("text_embeds")

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns, computed at the first drop of a prefill and remembered for the later ones."""
        if name not in self._once:
            self._once[name] = compute()
        return self._once[name].to(self.present.device)  # layers of one model may stand on several devices

    def at(self, num_layers: int, merged: int) -> DecoderContext:
        """The same context, told the model's depth and how many new tokens are promised."""
        self.num_layers, self.merged = num_layers, merged
        return self

    def without(self, tokens: Tensor, count: int) -> DecoderContext:
        """What is there besides `tokens` `[B, V]` bool, `count` of each image: for a method that chooses the rest."""
        rest = copy.copy(self)
        rest.present, rest.count = self.present & ~tokens, self.count - count
        return rest

    def remember_in(self, memory: dict[str, Any]) -> DecoderContext:
        """The same context, whose `once` is shared through `memory`."""
        self._once = memory
        return self

    def _read(self, name: str) -> Tensor:
        if name not in self._sources:
            raise FieldError(name, "not given to this DecoderContext", fix=f"pass {name}=... to it")
        value = self._sources[name] = _value(self._sources[name])
        return value


def _value(source: Source) -> Tensor:
    return source if isinstance(source, torch.Tensor) else source()


@dataclass(frozen=True)
class Selection:
    """The choice: `keep` `[B, V]` bool, at most the stage's count in a row; and what it was based on.

    `merged` `[B, M, D]` are new tokens for the stage's `merged` places; `merged_from` `[B, M]` names for each a
    visual token whose position it takes where positions are kept. `heads` `[B, H']` are -1 where a row chose fewer.
    """

    keep: Tensor
    scores: Tensor | None = None
    heads: Tensor | None = None
    head_scores: Tensor | None = None
    merged: Tensor | None = None
    merged_from: Tensor | None = None
    sources: Tensor | None = None
    """`[B, V]` bool: which tokens went into the merged ones, where the method says it."""
    guides: Tensor | None = None
    """`[B, m, V]`: the attention of the first m of `heads`, for whoever wants to see it (`guiding_rows`)."""
    details: Any = None
    """What a method wants written down of its choice; the trace keeps it by layer."""


def guiding_rows(attention: Tensor, heads: Tensor) -> Tensor:
    """The rows of `attention` `[B, H, V]` of the first `MOST_GUIDES` of `heads` `[B, H']`: `Selection.guides`."""
    index = heads[:, :MOST_GUIDES, None].clamp(min=0)
    return attention.gather(1, index.expand(-1, -1, attention.shape[2]))


def through_the_model(heads: Tensor, scores: Tensor, layers: Sequence[int], drop: int) -> tuple[Tensor, Tensor]:
    """Heads `[B, n]` of the joined rows of `layers`, and the `scores` `[B, H * layers]` of all, as `Selection` says.

    Numbered layer by layer from the model's first, layer · H + head, up to a drop before layer `drop`.
    """
    own = scores.shape[1] // len(layers)
    numbers = [torch.arange(layer * own, (layer + 1) * own, device=scores.device) for layer in layers]
    place = torch.cat(numbers).expand(len(scores), -1)
    return place.gather(1, heads), scores.new_zeros(len(scores), drop * own).scatter(1, place, scores)
