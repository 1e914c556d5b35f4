"""Keys and values in buffers of fixed capacity, each layer with a length of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class FixedCache:
    """What a decoder layer needs of a key-value cache: `update`. Buffers are `[B, KV heads, capacity, head_dim]`.

    `storage` is flat memory that holds all of them; caches that are never used at once can share it.
    """

    def __init__(self, storage: Tensor, rows: int, heads: int, head_dim: int, capacities: Sequence[int]) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.at: list[Tensor | None] = [None] * len(capacities)
        """By layer, the column `[1]` that the next token is written to; None while a prompt is written."""
        self.prompt = [0] * len(capacities)
        """By layer, the columns of the prompt that was written last."""
        taken = 0
        for capacity in capacities:
            size = rows * heads * capacity * head_dim
            for buffers in (self.keys, self.values):
                buffers.append(storage[taken : taken + size].view(rows, heads, capacity, head_dim))
                taken += size

    @staticmethod
    def elements(rows: int, heads: int, head_dim: int, capacities: Sequence[int]) -> int:
        """How many numbers `storage` must hold."""
        return 2 * rows * heads * head_dim * sum(capacities)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_args: Any, **_more: Any) -> tuple[Tensor, Tensor]:
        """Take in what a layer computed, and return what it attends to."""
        at, known, seen = self.at[layer], self.keys[layer], self.values[layer]
        if at is not None:
            return known.index_copy_(2, at, keys), seen.index_copy_(2, at, values)
        length = self.prompt[layer] = keys.shape[2]
        for buffer, new in ((known, keys), (seen, values)):
            buffer[:, :, :length].copy_(new)
            buffer[:, :, length:].zero_()  # what is masked is multiplied by zero, which NaN would survive
        return keys, values

    def of_prompt(self, layer: int) -> tuple[Tensor, Tensor]:
        """The rotated keys and the values of the prompt, `[B, KV heads, L, head_dim]` each."""
        length = self.prompt[layer]
        return self.keys[layer][:, :, :length], self.values[layer][:, :, :length]


class Storage:
    """Memory for buffers that are used one after the other.

    Where it grows, what was made on it before must not be used any more.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = torch.empty(0, dtype=dtype, device=device)

    def holds(self, elements: int) -> bool:
        """Whether it is large enough."""
        return len(self.memory) >= elements

    def grow(self, elements: int) -> None:
        """Make it large enough; the old memory is given back first."""
        like = self.memory
        self.memory = like.new_empty(0)
        del like
        self.memory = self.memory.new_zeros(elements)
