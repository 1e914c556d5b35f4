"""Requests made ready for the model: their pictures, and batches of prompts of about the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.asking.inputs import Prompt, batch_key
from finepruner_lmms.lmms.image_encoding import Picture

_WINDOW = 8  # batches


@dataclass(frozen=True)
class Prepared:
    """A request, ready to be batched. `pictures` are those of LLaVA-1.5, which are encoded once for all who show them.

    Other families have theirs in `prompt.media`.
    """

    task: str
    doc_id: int
    prompt: Prompt
    pictures: tuple[Picture, ...]
    decoding: dict[str, Any]
    key: str
    """Tells it from every other question of the evaluation."""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.ids)

    @property
    def words(self) -> int:
        """Those that stand for no visual token."""
        return self.length - self.prompt.num_visual_tokens

    @property
    def call_key(self) -> str:
        """The same text for requests that can share a call of `generate`."""
        return f"{sorted(self.decoding.items())}{batch_key(self.prompt)}"


def windows(count: int, batch_size: int) -> Iterator[slice]:
    """The requests in runs of 1, 2, 4 and then always 8 batches.

    Inside a window requests are sorted by length: little padding, and answers still come in order. Nothing can be
    answered before the first window is read, so that one is small; each is read while the one before is answered.
    """
    start, size = 0, batch_size
    while start < count:
        yield slice(start, min(start + size, count))
        start, size = start + size, min(2 * size, _WINDOW * batch_size)


def batches(prepared: Sequence[Prepared], batch_size: int) -> Iterator[list[int]]:
    """The requests' numbers in batches: decoded alike, prompts of about the same length together."""
    order = sorted(range(len(prepared)), key=lambda i: (prepared[i].call_key, prepared[i].length, i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or prepared[i].call_key != prepared[batch[0]].call_key):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def image_row(batch: Sequence[Prepared], row: int) -> int | None:
    """In which row a trace tells of the image of a row of the batch, where it tells of images.

    Where any row shows several, each image has a row of its own; None for a row of the batch that shows several.
    """
    counts = [len(item.prompt.spans) for item in batch]
    if max(counts) <= 1:
        return row
    return sum(counts[:row]) if counts[row] == 1 else None


def count_output(row: list[int], ends: set[int]) -> int:
    """Generated tokens up to and including the end token."""
    return next((place for place, token in enumerate(row, 1) if token in ends), len(row))
