"""What the host fixes of a batch before it is computed. Everything else lives on the device.

Batches of equal shapes share one recording, so rows and lengths are rounded up: prompts get more padding on the left,
and a batch gets rows that do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finepruner_lmms.engine.prompt_layout import Layout

LENGTH_STEP = 16
"""Prompts are padded to a multiple of this: of half of it in batches of `MANY` rows, which padding slows down more."""
MANY = 8
CAPACITY_STEP = 64
"""Caches hold a multiple of this, so that prompts of several lengths share one decode step."""
LONGEST = 8192
"""Longer prompts run eagerly."""


def round_up(count: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `count`."""
    return -(-count // step) * step


def rows_for(batch: int) -> int:
    """The rows of the buffers for a batch: powers of two, and half way between from 16 on."""
    rows = 1
    while rows < batch:
        rows *= 2
    return rows * 3 // 4 if rows >= 32 and rows * 3 // 4 >= batch else rows


@dataclass(frozen=True)
class Shape:
    """Upper bounds that hold for every row of a batch.

    `length` columns; `visual` placeholders per image, 0 where no row shows one; `text_length`, the longest row without
    an image, 0 where each shows one; `tail`, the most text after an image; `ends_with_image`, whether any prompt does;
    `padded`, whether any row is shorter than `length`.
    """

    rows: int
    length: int
    visual: int
    text_length: int
    tail: int
    ends_with_image: bool
    padded: bool

    @classmethod
    def of(cls, layout: Layout, visual: int) -> Shape:
        """The shape in which a batch with this layout is run; `visual` placeholders stand for each image."""
        longest, step = max(layout.lengths), LENGTH_STEP if len(layout.lengths) < MANY else LENGTH_STEP // 2
        length = round_up(longest, step)
        without = [n for n, shown in zip(layout.lengths, layout.has_image, strict=True) if not shown]
        shows = len(without) < len(layout.lengths)
        return cls(
            rows=rows_for(len(layout.lengths)),
            length=length,
            visual=visual if shows else 0,
            text_length=min(round_up(max(without), step), length) if without and shows else 0,
            tail=min(round_up(layout.tail, step), length - visual) if shows else 0,
            ends_with_image=any(layout.ends_with_image),
            padded=min(layout.lengths) < length,
        )

    @property
    def kinds(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Tokens, visual tokens and text after the image, at most, of each kind of row that there may be."""
        kinds = [(self.length, self.visual, self.tail)]
        if self.padded:
            kinds.append((self.length - 1, self.visual, self.tail))
        if self.text_length:
            kinds.append((self.text_length, 0, 0))
        if self.ends_with_image:
            kinds.append((self.length, self.visual, 0))
        lengths, counts, tails = zip(*kinds, strict=True)
        return lengths, counts, tails

    def layout(self, valid: Tensor, visual: Tensor) -> Layout:
        """The layout of prompts `valid` `[B, L]` with visual tokens at `visual` `[B, L]`; nothing is read back.

        What a layout knows on the host is given as bounds, one entry for each kind of row.
        """
        lengths, counts, tails = self.kinds
        columns = visual.int().argsort(dim=1, descending=True, stable=True)[:, : self.visual]
        seen = visual.long().cumsum(1)
        return Layout(
            valid=valid,
            columns=columns,
            present=visual.gather(1, columns),
            lengths=lengths,
            visual_counts=counts,
            text_after=(valid & ~visual & (seen == seen[:, -1:])).sum(1),
            tails=tails,
        )


def left_padded(rows: Tensor, shape: Shape, fill: int | bool) -> Tensor:
    """`rows` `[b, l]` as `[rows, length]` of `shape`: cut or filled on the left, and the first row repeated."""
    width = rows.shape[1]
    if width >= shape.length:
        rows = rows[:, width - shape.length :]
    else:
        rows = torch.nn.functional.pad(rows, (shape.length - width, 0), value=fill)
    return torch.cat([rows, rows[:1].expand(shape.rows - len(rows), -1)])
