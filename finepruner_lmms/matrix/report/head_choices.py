"""Which heads guided each question, as runs wrote it down: with the traces of a cell, or as selections (`monitor`)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finepruner_lmms.files import parse_json, read_bytes, split_lines
from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.records import Damage, Fused, Selected
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.traces import read_heads

Choices = dict[tuple[str, int], list[int]]
"""By task and number of the question: the heads that were chosen for it."""


def choices(store: Store, study: Study, row: int) -> Choices:
    """The heads of a row's questions, at the first layer that chose any: of traces, and of selections where there are.

    Traces that are damaged are left out.
    """
    found: Choices = {}
    for cell in study.cells:
        if cell.row != row:
            continue
        try:
            heads = read_heads(store.cell_dir(cell))
        except Damage:  # the flip view says so
            continue
        found |= {(cell.task, number): list(chosen) for number, chosen in heads.items()}
    for entry in selections(store, study, row):
        if entry.get("heads"):
            found[entry["task"].removeprefix("fp_"), entry["doc_id"]] = entry["heads"]
    return found


def agreement(rows: dict[str, Choices]) -> tuple[np.ndarray, list[str]]:
    """`[R, R]`: the mean share of heads in common (of the smaller choice) over the samples that two rows both saw."""
    names = list(rows)
    table = np.eye(len(names))
    for (i, first), (j, second) in itertools.combinations(enumerate(rows.values()), 2):
        common = first.keys() & second.keys()
        shares = [
            len(set(first[key]) & set(second[key])) / min(len(first[key]), len(second[key])) for key in sorted(common)
        ]
        table[i, j] = table[j, i] = statistics.fmean(shares) if shares else np.nan
    return table, names


def chosen_by_task(rows: dict[str, Choices]) -> dict[tuple[str, str], np.ndarray]:
    """By row and task: the share of samples in which each head is chosen, `[H]`."""
    size = 1 + max(head for found in rows.values() for heads in found.values() for head in heads)
    shares = {}
    for name, found in rows.items():
        for task in sorted({task for task, _ in found}):
            counts = np.zeros(size)
            samples = [heads for (of, _), heads in found.items() if of == task]
            for heads in samples:
                counts[heads] += 1
            shares[name, task] = counts / len(samples)
    return shares


def selections(store: Store, study: Study, row: int) -> list[dict[str, Any]]:
    """What was written down of a row's selections, in the order of tasks and documents; the latest of each."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for file in _selection_files(store, study, row):
        for entry in _entries(file):
            if entry is not None:
                found[entry["task"], entry["doc_id"], entry["layer"]] = entry
    return [found[key] for key in sorted(found)]


def damaged_selections(store: Store, study: Study) -> Iterator[str]:
    """A line for each file of selections of which some line, such as one that was cut off, is left out."""
    for row in range(len(study.rows)):
        for file in _selection_files(store, study, row):
            if lost := sum(entry is None for entry in _entries(file)):
                yield f"{file.parent.name}/{file.name}: {lost} damaged line{'s' * (lost > 1)}, left out"


def _selection_files(store: Store, study: Study, row: int) -> Iterator[Path]:
    for cell in study.cells:
        if cell.row == row:
            yield from sorted(store.cell_dir(cell).glob("selections-rank*.jsonl"))


def _entries(file: Path) -> Iterator[dict[str, Any] | None]:
    """The selections in a file, and None for each line that holds none."""
    try:
        lines = split_lines(read_bytes(file).decode("utf-8", errors="replace"))
    except OSError:
        lines = [""]
    for line in lines:
        try:
            entry = parse_json(line.encode())
            (Fused if isinstance(entry, dict) and "qualities" in entry else Selected).model_validate(entry)
        except ValueError:  # pydantic's are such, too
            entry = None
        yield entry
