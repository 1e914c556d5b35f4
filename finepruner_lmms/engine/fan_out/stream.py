"""Rows that walk through the decoder together: each is a question with what some methods have kept of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.fan_out.layers import Passage, parts_of
from finepruner_lmms.engine.prompt_state import LastToken


@dataclass(frozen=True)
class Segment:
    """What the layers from `start` to the next segment's see of R rows: `width` columns, of which `valid` count.

    `valid` `[R, width]` is None where all do; `shift` `[R, 1]` is what the positions of later tokens are less here.
    """

    start: int
    width: int
    valid: Tensor | None
    shift: Tensor

    def of_rows(self, rows: Tensor) -> Segment:
        """The same of some rows."""
        return Segment(self.start, self.width, None if self.valid is None else self.valid[rows], self.shift[rows])


@dataclass(frozen=True)
class Kept:
    """Keys and values of a layer, and which of their rows are meant (None: all, in order)."""

    keys: Tensor
    values: Tensor
    rows: Tensor | None = None

    def of_rows(self, rows: Tensor) -> Kept:
        """The same of some rows, of which nothing is copied yet."""
        return Kept(self.keys, self.values, rows if self.rows is None else self.rows[rows])

    def copied(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows that are meant."""
        return (self.keys, self.values) if self.rows is None else (self.keys[self.rows], self.values[self.rows])


@dataclass
class Stream:
    """R rows before decoder layer `layer`, all of one width: `hidden` `[R, L, D]`, `positions` `[R, L]`.

    `next_position` `[R, 1]` is that of the first generated token, before any shift. `segments` and `caches` tell of
    the layers that they came through; the last segment is the one that they are in. `cells` are the numbers of the
    methods on their way in it; `rows` says for each which rows are its questions', in order. `asking` is the last token
    in the layers that came before and whose attention a method will read.
    """

    layer: int
    hidden: Tensor
    positions: Tensor
    next_position: Tensor
    segments: list[Segment]
    caches: list[Kept] = field(default_factory=list)
    rows: dict[int, Tensor] = field(default_factory=dict)
    inside: Tensor | None = None
    asking: dict[int, LastToken] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.next_position)

    @property
    def width(self) -> int:
        """L."""
        return self.segments[-1].width

    @property
    def valid(self) -> Tensor | None:
        """Which of the tokens count, `[R, L]`; None if all do."""
        return self.segments[-1].valid

    def advance(self, decoder: Any, end: int, tokens: int, watched: Collection[int] = ()) -> None:
        """Take the rows through the layers up to `end`, so many tokens at a time.

        Keeps in `inside` what the attention of the last of these layers got, if a drop can follow, and in `asking` the
        last token in those that are `watched`.
        """
        passage = Passage(decoder, self.layer, end, watched)
        for part in parts_of(len(self), self.width, tokens):
            passage.run(self.hidden[part], self.positions[part], None if self.valid is None else self.valid[part])
        self.hidden = passage.hidden
        self.inside = None if passage.last else passage.inside
        self.caches += [Kept(keys, values) for keys, values in passage.caches()]
        self.asking |= passage.asking()
        self.layer = end

    def without_drop(self, cells: Sequence[int]) -> Stream:
        """The rows of those methods that drop nothing here, which go on as they are."""
        chosen = torch.cat([self.rows[cell] for cell in cells])
        used, place = chosen.unique(return_inverse=True)
        places = place.split([len(self.rows[cell]) for cell in cells])
        return Stream(
            self.layer,
            self.hidden[used],
            self.positions[used],
            self.next_position[used],
            [segment.of_rows(used) for segment in self.segments],
            [kept.of_rows(used) for kept in self.caches],
            dict(zip(cells, places, strict=True)),
            asking=asking_of(self.asking, used),
        )


@dataclass
class Sprout:
    """A stream that begins at a drop, of which rows are still being collected: equal ones are one."""

    parent: Stream
    width: int
    hidden: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    shift: list[Tensor] = field(default_factory=list)
    rows: dict[int, list[int]] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)

    def add(
        self,
        cell: int,
        identities: Sequence[Any],
        parents: Sequence[int],
        hidden: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        shift: Tensor,
    ) -> None:
        """The rows of a method: the questions' own, of the parent's rows `parents`.

        Rows with equal `identities` hold the same tokens; only the first of them is kept.
        """
        places, new = [], []
        for row, identity in enumerate(identities):
            if identity not in self._known:
                self._known[identity] = len(self._parents)
                self._parents.append(parents[row])
                new.append(row)
            places.append(self._known[identity])
        self.rows[cell] = places
        if new:
            chosen = slice(None) if len(new) == len(identities) else torch.tensor(new, device=hidden.device)
            self.hidden.append(hidden[chosen])
            self.positions.append(positions[chosen])
            self.shift.append(shift[chosen])
            if valid is not None:
                self.valid.append(valid[chosen])

    def grown(self) -> Stream:
        """The stream, with nothing of this left behind."""
        parent, device = self.parent, self.hidden[0].device
        origin = torch.tensor(self._parents, device=device)
        hidden, self.hidden = torch.cat(self.hidden), []
        segment = Segment(
            parent.layer, self.width, torch.cat(self.valid) if self.valid else None, torch.cat(self.shift)
        )
        return Stream(
            parent.layer,
            hidden,
            torch.cat(self.positions),
            parent.next_position[origin],
            [*(earlier.of_rows(origin) for earlier in parent.segments), segment],
            [kept.of_rows(origin) for kept in parent.caches],
            {cell: torch.tensor(rows, device=device) for cell, rows in self.rows.items()},
            asking=asking_of(parent.asking, origin),
        )


def asking_of(asking: dict[int, LastToken], rows: Tensor) -> dict[int, LastToken]:
    """The last tokens of some rows."""
    return {layer: token.changed(lambda values: values[rows]) for layer, token in asking.items()}
