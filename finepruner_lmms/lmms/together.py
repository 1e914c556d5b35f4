"""Answering for several cells of a study at once, while lmms-eval evaluates one of them.

lmms-eval evaluates cell by cell. While one is evaluated, each of its batches is answered by the methods of the others
as well: their answers are written to the journals of their cells, in which their own evaluations find them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger

from finepruner_lmms.engine.fan_out import answer_together, why_apart
from finepruner_lmms.engine.fan_out.memory import free_bytes, predicted_bytes
from finepruner_lmms.engine.generation import Generation
from finepruner_lmms.errors import first_line
from finepruner_lmms.lmms.batching import Prepared
from finepruner_lmms.lmms.journal import Answer, Journal
from finepruner_lmms.lmms.meter import BatchTime
from finepruner_lmms.lmms.monitor import Monitor
from finepruner_lmms.pruners import Pruner

_SHARE = 0.7
"""Of the free memory, so much may be planned for; the rest is for what a prediction does not know."""


_WRITERS = 16
_WORTH = 4
"""So many cells are answered together on a GPU, or none: together they share the 27 ms that the host needs for an eager
step, alone each has recorded ones of 8 ms (docs/performance.md, LLaVA-1.5-7B on an H100). Not measured as a whole."""


def too_few(device: torch.device, cells: int) -> str | None:
    """Why so many cells are faster one after the other; None if they are not."""
    if device.type != "cuda" or cells >= _WORTH:
        return None
    return f"fewer than {_WORTH} are faster as recordings of their own"


def other_pictures(batch: Sequence[Prepared]) -> str | None:
    """Why a batch with such pictures is answered for one cell alone; None if it need not be."""
    if any(item.prompt.media for item in batch):
        return "only LLaVA-1.5 answers for several at once"
    return "a prompt shows several images" if any(len(item.pictures) > 1 for item in batch) else None


@dataclass
class Companion:
    """A cell that is answered along with others: its method, and where its answers and selections are written.

    `failed` says that its method raised: its own evaluation will raise it again, and say so.
    """

    label: str
    pruner: Pruner
    journal: Journal
    monitor: Monitor
    failed: bool = False


class Company:
    """The cells that are answered together, by their id: those that are not evaluated yet."""

    def __init__(self, members: dict[str, Companion]) -> None:
        self.members = members
        self.most: int | None = None
        """How many can be answered at once, after memory ran out with more."""
        self._said: set[str] = set()

    def seat(self, cell: str, journal: Journal) -> Seat:
        """Of the cell that is to be evaluated; `journal` is its own where it is no member."""
        member = self.members.pop(cell, None)
        return Seat(journal if member is None else member.journal, self)

    def say(self, text: str) -> None:
        """Once."""
        if text not in self._said:
            self._said.add(text)
            logger.info(text)


@dataclass(frozen=True)
class Shared:
    """What came of a batch: of the cell under evaluation or the error that it raised, and of others, with answers."""

    own: Generation | Exception
    others: list[tuple[Companion, Generation, list[Answer]]]

    def keep(self, keys: Sequence[str], time_of: BatchTime) -> None:
        """Write the answers of the others down; `time_of` is what the batch took."""

        def write(other: tuple[Companion, Generation, list[Answer]]) -> None:
            companion, generation, answers = other
            companion.journal.add(keys, answers, time_of.of(generation))

        if self.others:
            # a disk that syncs many files at once takes about as long as for one
            with ThreadPoolExecutor(min(_WRITERS, len(self.others)), thread_name_prefix="journal") as pool:
                list(pool.map(write, self.others))


class Seat:
    """The place of the cell under evaluation: its `journal`, if it has one, and the company that it answers for."""

    def __init__(self, journal: Journal | None, company: Company) -> None:
        self.journal, self._company = journal, company

    @property
    def alone(self) -> bool:
        """Whether no other cell takes part."""
        return not self._company.members

    def generate(
        self,
        model: Any,
        pruner: Pruner,
        batch: Sequence[Prepared],
        inputs: dict[str, Any],
        alone: Callable[[], Generation],
        tell: Callable[[Companion, Generation], list[Answer]],
    ) -> Shared:
        """What `pruner` makes of a batch, which is answered for the others as well, as far as they lack it.

        `alone` generates where no other lacks it, or where cells cannot be answered together; `tell` writes down what a
        companion selected, and makes answers of what it generated. A companion that raises is left alone from then on.
        """
        keys, decoding = [item.key for item in batch], batch[0].decoding
        questions = [item.prompt.question for item in batch]
        waiting = [
            member for member in self._company.members.values() if not member.failed and member.journal.lacks(keys)
        ]
        reason = other_pictures(batch) or why_apart(model, decoding) or too_few(model.device, 1 + len(waiting))
        if waiting and reason is not None:
            self._company.say(f"cells are answered one after the other: {reason}")
            waiting = []
        own: Generation | Exception | None = None if waiting else alone()
        others = []
        while waiting:
            lead = [pruner] if own is None else []
            count = self._fitting(model, lead, waiting, batch)
            those = waiting[:count]
            pruners = [*lead, *(member.pruner for member in those)]
            try:
                outcomes = answer_together(model, pruners, inputs, questions=questions, **decoding).outcomes
            except torch.OutOfMemoryError:
                if len(pruners) == 1:
                    raise
                self._company.most = len(pruners) // 2
                self._company.say(f"memory ran out with {len(pruners)} cells at once; going on with half of them")
                torch.cuda.empty_cache()
                continue
            waiting = waiting[count:]
            own = outcomes[0] if lead else own
            for member, outcome in zip(those, outcomes[len(lead) :], strict=True):
                if isinstance(outcome, Exception):
                    member.failed = True
                    logger.warning(f"{member.label} goes on alone: {type(outcome).__name__}: {first_line(outcome)}")
                    continue
                others.append((member, outcome, tell(member, outcome)))
            if isinstance(own, Exception):
                break
        assert own is not None
        return Shared(own, others)

    def _fitting(self, model: Any, lead: list[Pruner], waiting: list[Companion], batch: Sequence[Prepared]) -> int:
        """How many of the companions can be answered at once, by the memory that is free: one at least."""
        most = len(waiting) if self._company.most is None else min(len(waiting), self._company.most - len(lead))
        free = _SHARE * free_bytes(model.device)
        words = max(item.words for item in batch)
        low, high = 1 - len(lead), most
        while low < high:  # the most that fit, by bisection
            middle = (low + high + 1) // 2
            needed = predicted_bytes(
                model.config,
                [*lead, *(member.pruner for member in waiting[:middle])],
                questions=len(batch),
                words=words,
                max_new_tokens=batch[0].decoding["max_new_tokens"],
                element_bytes=model.dtype.itemsize,
            )
            low, high = (middle, high) if needed <= free else (low, middle - 1)
        return low
