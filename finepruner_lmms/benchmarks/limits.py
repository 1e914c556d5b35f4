"""A limit: the same few questions for every method, in whole groups, spread over what the score is the mean of.

lmms-eval takes the first n documents. Data sets are ordered: by image, by category (MME), by kind of negatives (POPE),
and the orders of one MMBench question may lie apart, so the first n are one category, or parts of questions. Here a
task's `process_docs` chooses instead: at random with a fixed seed, so that the choice depends on the questions alone.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.errors import FieldError

DOCUMENT = "fp_document"
"""The column that a chosen document's number in the whole data set is kept in."""
_SEED = "finepruner_lmms limit"
_SHOWN = "finepruner_lmms shown"
Keys = Mapping[str, Any]


def _nothing(keys: Keys) -> Hashable:
    return ()


@dataclass(frozen=True)
class Sampling:
    """What a choice of questions reads: `columns`, of which `group` makes what belongs together.

    Without columns every question is a group of its own, known by its place. `stratum` is what the choice is spread
    over evenly: what the score is a mean of.
    """

    columns: tuple[str, ...] = ()
    group: Callable[[Keys], Hashable] | None = None
    stratum: Callable[[Keys], Hashable] = _nothing


EACH_ALONE = Sampling()
"""Every question is a group of its own, and nothing is to be spread over."""


def choose(keys: Sequence[Keys], sampling: Sampling, limit: int) -> list[int]:
    """The places of at most `limit` questions, ascending: whole groups only, in turn from each stratum.

    A stratum's groups come in the order of a hash of what they are, so that neither the order of the data nor the
    number of processes changes the choice, and a larger limit adds to a smaller one. A group that no longer fits is
    passed over. `FieldError` where no group fits.
    """
    groups: dict[tuple[Hashable, Hashable], list[int]] = {}
    for place, row in enumerate(keys):
        name = place if sampling.group is None else sampling.group(row)
        groups.setdefault((sampling.stratum(row), name), []).append(place)
    strata: dict[Hashable, list[tuple[Hashable, Hashable]]] = {}
    for key in groups:
        strata.setdefault(key[0], []).append(key)
    for members in strata.values():
        members.sort(key=_order)
    # the largest stratum first: where there are fewer places than strata, it is what the benchmark is mostly about
    queues = sorted(strata.items(), key=lambda item: (-len(item[1]), repr(item[0])))
    chosen: list[int] = []
    for turn in range(max((len(members) for members in strata.values()), default=0)):
        for _, members in queues:
            if turn < len(members) and len(chosen) + len(groups[members[turn]]) <= limit:
                chosen += groups[members[turn]]
        if len(chosen) == limit:
            break
    if not chosen and keys:
        least = min(map(len, groups.values()))
        raise FieldError(
            "limit", f"got {limit}, but questions are asked in groups of {least} and more", value=limit,
            fix=f"give at least {least}",
        )  # fmt: skip
    return sorted(chosen)


def _order(key: tuple[Hashable, Hashable]) -> bytes:
    return hashlib.sha256(f"{_SEED} {key[1]!r}".encode()).digest()


def recorded(document_numbers: Iterable[int], most: int) -> set[int]:
    """The numbers of at most `most` questions whose traces are kept, and which are shown: the same for every method.

    Chosen by a hash of the number, so that neither order nor processes change the choice, and more add to fewer.
    """
    return set(heapq.nsmallest(most, set(document_numbers), key=_shown_order))


def _shown_order(number: int) -> bytes:
    return hashlib.sha256(f"{_SHOWN} {number}".encode()).digest()


def chooser(sampling: Sampling, limit: int) -> Callable[[Any], Any]:
    """A task's `process_docs`: takes a `datasets.Dataset`, gives the chosen rows, each with its number in `DOCUMENT`.

    No image is decoded and no row copied.
    """

    def process_docs(documents: Any) -> Any:
        if sampling.columns:
            read = documents.select_columns(list(sampling.columns))[:]
            keys: list[Keys] = [dict(zip(read, row, strict=True)) for row in zip(*read.values(), strict=True)]
        else:
            keys = [{}] * len(documents)
        numbered = documents.add_column(DOCUMENT, range(len(documents)))
        return numbered.select(choose(keys, sampling, limit))

    return process_docs


def document_numbers(documents: Any) -> Sequence[int]:
    """The number of each document in the whole data set: its place, unless a limit has chosen."""
    if DOCUMENT not in documents.column_names:
        return range(len(documents))
    return [int(number) for number in documents.select_columns([DOCUMENT])[DOCUMENT]]


def document_number(documents: Any, place: int) -> int:
    """`document_numbers` of one document; what is no `datasets.Dataset` was not chosen from."""
    if DOCUMENT not in getattr(documents, "column_names", ()):
        return place
    return int(documents.select_columns([DOCUMENT])[place][DOCUMENT])
