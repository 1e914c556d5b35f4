"""Greedy decoding on fixed buffers: one step is the same tensor code every time, whatever the prompts were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.fixed.cache import FixedCache
from finepruner_lmms.engine.fixed.layers import normed, through
from finepruner_lmms.engine.versions import cache_keyword

UNSEEN = float("-inf")


@dataclass(frozen=True)
class Segment:
    """A run of decoder layers, from `layer` on, that see the same tokens; its caches hold `capacity` columns."""

    layer: int
    capacity: int


@dataclass(frozen=True)
class Ending:
    """What ends an answer: one of `ends` (none: only its length), after which a row is filled with `padding`."""

    padding: int
    ends: tuple[int, ...]


class Decoding:
    """The state of a batch between two tokens, on the device, and the step from one to the next.

    `token` `[B, 1]` is the newest one, `position` `[B, 1]` its position as the prompt counts; `tokens`
    `[B, room]` all so far, `finished` `[B]` which rows have ended; `logits` `[B, vocabulary]` in float32, those of the
    newest token; `unfinished` `[1]` how many rows go on.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        segments: Sequence[Segment],
        room: int,
        ending: Ending,
        storage: Tensor,
    ) -> None:
        decoder, config = model.model.language_model, model.config.text_config
        self.decoder, self.head = decoder, model.lm_head
        self.segments, self.room, self.rows = tuple(segments), room, rows
        device = model.lm_head.weight.device
        capacities = self.capacities(segments, len(decoder.layers))
        attention = decoder.layers[0].self_attn
        self.cache = FixedCache(storage, rows, config.num_key_value_heads, attention.head_dim, capacities)
        self._keyword = {cache_keyword(decoder.layers[0]): self.cache, "use_cache": True}

        def buffer(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.token, self.position = buffer(rows, 1), buffer(rows, 1)
        self.tokens, self.count = buffer(rows, room), buffer(1)
        self.finished, self.idle = buffer(rows, dtype=torch.bool), buffer(rows, dtype=torch.bool)
        self.unfinished = buffer(1)
        self.logits = buffer(rows, model.lm_head.weight.shape[0], dtype=torch.float32)
        self.at = [buffer(1) for _ in segments]
        self.shift = [buffer(rows, 1) for _ in segments]
        # added to the logits of attention: 0 where a column is seen
        self.masks = [buffer(rows, 1, 1, segment.capacity, dtype=model.dtype) for segment in segments]
        self._padding = torch.full((rows, 1), ending.padding, device=device)
        self._ends = torch.tensor(ending.ends, dtype=torch.long, device=device)

    @staticmethod
    def capacities(segments: Sequence[Segment], num_layers: int) -> list[int]:
        """The capacity of each layer."""
        ends = [*[segment.layer for segment in segments][1:], num_layers]
        runs = [[one.capacity] * (end - one.layer) for one, end in zip(segments, ends, strict=True)]
        return [capacity for run in runs for capacity in run]

    @property
    def _of_layer(self) -> list[int]:
        starts = [segment.layer for segment in self.segments]
        return [max(k for k, start in enumerate(starts) if start <= layer) for layer in range(len(self.decoder.layers))]

    def reset(self) -> None:
        """An empty prompt and no token so far."""
        for counter in (self.count, self.token, self.position, *self.at):
            counter.zero_()

    def write_prompt(self) -> None:
        """From now on the layers' keys and values are those of a prompt."""
        self.cache.at = [None] * len(self.cache.at)

    def begin(self, hidden: Tensor, valid: Tensor, seen: Sequence[tuple[Tensor | None, int, Tensor | int]]) -> None:
        """The prompt is written: `hidden` `[B, 1, D]` left the last layer, `valid` `[B, L]` are its tokens.

        `seen` gives for each segment the valid columns of its caches (None: all), their number, and what renumbering
        takes from the positions.
        """
        for (columns, length, shift), mask, at, taken in zip(seen, self.masks, self.at, self.shift, strict=True):
            mask.fill_(UNSEEN)
            mask[..., :length].fill_(0)
            if columns is not None:
                mask[:, 0, 0, :length].masked_fill_(~columns, UNSEEN)
            at.fill_(length)
            taken.copy_(shift) if isinstance(shift, Tensor) else taken.fill_(shift)
        self.position.copy_(valid.sum(1, keepdim=True))
        self.finished.copy_(self.idle)
        self.tokens.copy_(self._padding.expand_as(self.tokens))
        self.count.zero_()
        self._emit(hidden)

    def step(self) -> None:
        """Take in the newest token, and choose the next."""
        of_layer, hidden = self._of_layer, self.decoder.embed_tokens(self.token)
        for mask, at in zip(self.masks, self.at, strict=True):
            mask.index_fill_(3, at, 0)
        rotary = [self.decoder.rotary_emb(hidden, position_ids=self.position - shift) for shift in self.shift]
        self.cache.at = [self.at[k] for k in of_layer]
        for layer, k in zip(self.decoder.layers, of_layer, strict=True):
            rest = {"attention_mask": self.masks[k], "position_embeddings": rotary[k]} | self._keyword
            hidden = through(layer, hidden, rest)
        for at in self.at:
            at.add_(1)
        self.position.add_(1)
        self._emit(hidden)

    def prefill_arguments(self) -> dict[str, Any]:
        """The cache, under the name by which the layers take it."""
        return self._keyword

    def _emit(self, hidden: Tensor) -> None:
        """Choose the next token from what left the last layer, `[B, 1, D]`, as `generate` does."""
        self.logits.copy_(self.head(normed(self.decoder.norm, hidden))[:, -1])
        chosen = torch.where(self.finished[:, None], self._padding, self.logits.argmax(-1, keepdim=True))
        self.token.copy_(chosen)
        self.tokens.index_copy_(1, self.count, chosen)
        self.count.add_(1)
        self.finished.logical_or_((chosen == self._ends).any(1))
        self.unfinished.copy_((~self.finished).sum(0, keepdim=True))
