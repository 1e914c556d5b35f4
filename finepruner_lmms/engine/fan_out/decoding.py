"""Greedy decoding of many rows as one batch, whose caches have many lengths.

Everything but attention is computed for all rows at once, so that the weights are read once per token and not once per
method. Attention runs per group: rows that came through the layers in one stream, and so have caches of one length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.fan_out.layers import (
    after_attention,
    attend,
    head_logits,
    project,
    rotary_of,
    rotate,
)
from finepruner_lmms.engine.fan_out.stream import Kept, Stream
from finepruner_lmms.engine.fixed.decoding import Ending

ROOM = 8
"""By so many tokens a cache grows when it is full."""
_SHRINK = 0.75
"""When fewer than this share of the rows are unfinished, the others leave the batch."""


@dataclass
class Buffer:
    """Keys and values of a layer, `[R, KV heads, capacity, head_dim]`: the first `length` columns are filled."""

    keys: Tensor
    values: Tensor
    length: int

    @classmethod
    def of(cls, kept: Kept, room: int) -> Buffer:
        """The prompt's, with room for so many tokens more."""
        buffer = cls(kept.keys, kept.values, kept.keys.shape[2])
        buffer.resize(kept.rows, room)
        return buffer

    def resize(self, rows: Tensor | None, room: int) -> None:
        """Keep only `rows` (None: all), with room for so many tokens after the last."""

        def copied(old: Tensor) -> Tensor:
            count = len(old) if rows is None else len(rows)
            new = old.new_empty(count, old.shape[1], self.length + room, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length] if rows is None else old[rows, :, : self.length]
            return new

        self.keys = copied(self.keys)
        self.values = copied(self.values)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """One token more in each row."""
        if self.length == self.keys.shape[2]:
            self.resize(None, ROOM)
        self.keys[:, :, self.length : self.length + 1] = keys
        self.values[:, :, self.length : self.length + 1] = values
        self.length += 1

    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far."""
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Group:
    """The rows of one stream while they are decoded. `rows` are their places among all rows of the call."""

    def __init__(self, stream: Stream, rows: Tensor, room: int) -> None:
        self.rows, self.position = rows, stream.next_position
        self.segments = list(stream.segments)
        self.buffers: list[Buffer] = []
        for place, kept in enumerate(stream.caches):
            self.buffers.append(Buffer.of(kept, room))
            stream.caches[place] = None  # type: ignore[call-overload]  # the prefill's own is not needed any more
        ends = [*(segment.start for segment in self.segments[1:]), len(self.buffers)]
        self.segment_of = [
            number for number, segment in enumerate(self.segments) for _ in range(segment.start, ends[number])
        ]

    def grow(self) -> None:
        """The next token is one further, and counts."""
        self.position = self.position + 1
        self.segments = [
            replace(
                segment,
                width=segment.width + 1,
                valid=None
                if segment.valid is None
                else torch.cat([segment.valid, segment.valid.new_ones(len(segment.valid), 1)], dim=1),
            )
            for segment in self.segments
        ]

    def keep(self, places: Tensor) -> None:
        """Only some of the rows go on."""
        self.rows, self.position = self.rows[places], self.position[places]
        self.segments = [segment.of_rows(places) for segment in self.segments]
        for buffer in self.buffers:
            buffer.resize(places, ROOM)


@torch.no_grad()
def decode(model: Any, streams: list[Stream], ending: Ending, max_new_tokens: int) -> list[list[int]]:
    """The answers of all rows, stream after stream: token ids up to and including the one that ends a text."""
    decoder = model.model.language_model
    hidden = torch.cat([stream.hidden for stream in streams])
    room = min(ROOM, max_new_tokens)
    starts = torch.arange(len(hidden), device=hidden.device).split([len(stream) for stream in streams])
    groups = [Group(stream, rows, room) for stream, rows in zip(streams, starts, strict=True)]
    answers: list[list[int]] = [[] for _ in range(len(hidden))]
    going = list(range(len(hidden)))  # the rows in `hidden`, in order
    tokens = _best(model, hidden)
    for step in range(max_new_tokens):
        found = tokens.tolist()
        left = []
        for place, row in enumerate(going):
            answer = answers[row]
            if answer and answer[-1] in ending.ends:
                continue  # it ended earlier, and has not left yet
            answer.append(found[place])
            if found[place] not in ending.ends:
                left.append(place)
        if not left or step == max_new_tokens - 1:
            break
        if len(left) < _SHRINK * len(going):
            chosen = torch.tensor(left, device=tokens.device)
            groups = _leave(groups, left)
            tokens, going = tokens[chosen], [going[place] for place in left]
        tokens = _best(model, _step(model, decoder, groups, tokens))
    return answers


def _leave(groups: list[Group], left: list[int]) -> list[Group]:
    """The groups with those rows only whose places in the batch are in `left`."""
    start, going = 0, []
    for group in groups:
        end = start + len(group.rows)
        inside = [place - start for place in left if start <= place < end]
        if inside:
            if len(inside) < end - start:
                group.keep(torch.tensor(inside, device=group.rows.device))
            going.append(group)
        start = end
    return going


def _best(model: Any, hidden: Tensor) -> Tensor:
    return head_logits(model, hidden).argmax(-1)


def _step(model: Any, decoder: Any, groups: list[Group], tokens: Tensor) -> Tensor:
    """One token more in each row: `tokens` `[R]` are those before it. Returns the last layer's output `[R, 1, D]`."""
    hidden = model.get_input_embeddings()(tokens[:, None])
    sizes = [len(group.rows) for group in groups]
    rotary = [
        [rotary_of(decoder, hidden, group.position - segment.shift) for segment in group.segments] for group in groups
    ]
    for group in groups:
        group.grow()
    for index, layer in enumerate(decoder.layers):
        queries, keys, values = (part.split(sizes) for part in project(layer, hidden))
        seen = []
        for number, group in enumerate(groups):
            place = group.segment_of[index]
            segment, buffer = group.segments[place], group.buffers[index]
            query, key = rotate(queries[number], keys[number], rotary[number][place])
            buffer.append(key, values[number])
            seen.append(attend(layer.self_attn, query, *buffer.filled(), segment.valid))
        hidden = after_attention(layer, hidden, torch.cat(seen) if len(seen) > 1 else seen[0])
    return hidden
