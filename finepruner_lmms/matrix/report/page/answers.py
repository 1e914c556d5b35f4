"""What the rows of some studies answered to one task: the questions that they share, and each row's verdict of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks.measure import score_of
from finepruner_lmms.benchmarks.mmbench import letter_in
from finepruner_lmms.matrix.measures import title as title_of
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Result, Sample
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import Store


@dataclass(frozen=True)
class Row:
    """A row of a study, by a number that is its own in the whole report."""

    number: int
    store: int
    label: str
    key: str | None
    """The line of the leaderboard that shows it, alone or with other seeds; None where none does."""


@dataclass(frozen=True)
class Answers:
    """One row's answers to a task, by the question's number in the whole data set."""

    row: Row
    study: Study
    cell: Cell
    folder: Path
    samples: dict[int, Sample]
    verdicts: dict[int, float]
    """The score of each question by itself; what counts only together with others has none."""


@dataclass(frozen=True)
class Asked:
    """A task, whose questions are the same for all of `answers`: they come from the same data."""

    task: str
    title: str
    cell: Cell
    """One that says where the questions are to be read."""
    study: Study
    higher: bool
    answers: tuple[Answers, ...]

    @property
    def numbers(self) -> list[int]:
        """All questions that any row answered, ascending."""
        return sorted(set().union(*(one.samples for one in self.answers)))


def rows_of(stores: Sequence[Store], board: Leaderboard) -> list[Row]:
    """Every row of every study, in order."""
    keys = {(line.study, number): line.key for line in board.lines for number in line.rows}
    found: list[Row] = []
    for place, store in enumerate(stores):
        several = f"{board.studies[place]}: " if len(stores) > 1 else ""
        for number, row in enumerate(store.study().rows):
            found.append(Row(len(found), place, several + row.label, keys.get((board.studies[place], number))))
    return found


def asked_tasks(stores: Sequence[Store], rows: Sequence[Row]) -> Iterator[Asked]:
    """Each task that some row has done, with the answers of all rows that were asked about the same data."""
    found: dict[tuple[str, str, str], list[tuple[Study, Row, Cell, Path, Result]]] = {}
    for place, store in enumerate(stores):
        study = store.study()
        mine = [row for row in rows if row.store == place]
        for cell, state in zip(study.cells, store.states(study.cells), strict=True):
            if state.result is None or state.result.submission is not None:
                continue
            key = cell.task, _data_of(study, cell), cell.definition
            found.setdefault(key, []).append((study, mine[cell.row], cell, store.cell_dir(cell), state.result))
    for (task, _, _), cells in found.items():
        answers = tuple(_answers(study, row, cell, folder) for study, row, cell, folder, _ in cells)
        own = next((one for one in cells if one[2].method.imported is None), cells[0])
        measure = own[4].measure
        yield Asked(
            task, title_of(task, measure), own[2], own[0], measure is None or measure.higher_is_better, answers
        )  # fmt: skip


def _data_of(study: Study, cell: Cell) -> str:
    """Which data a cell was asked about; an imported row counts to the one that its study was asked about."""
    if cell.method.imported is not None:
        own = (c for c in study.cells if c.task == cell.task and c.method.imported is None)
        cell = next(own, cell)
    return cell.identity.data


def _answers(study: Study, row: Row, cell: Cell, folder: Path) -> Answers:
    samples = {int(sample["doc_id"]): sample for sample in read_lines(folder / "samples.jsonl")}
    found = ((number, verdict_of(sample)) for number, sample in samples.items())
    verdicts = {number: verdict for number, verdict in found if verdict is not None}
    return Answers(row, study, cell, folder, samples, verdicts)


def verdict_of(sample: Sample) -> float | None:
    """How right an answer is by itself, as its task scores it; None where the score is not one of a question.

    A row of MMBench counts only together with the other orders of its options: by itself it is right if its letter is.
    """
    score: Any = sample.get("score")
    if (found := score_of(score)) is not None:
        return found
    if isinstance(score, dict) and {"answer", "prediction", "A", "B"} <= score.keys():
        return float(letter_in(score) == score["answer"])
    return None


def category_of(sample: Sample) -> str:
    """The category that a score names, or ""."""
    score = sample.get("score")
    return str(score.get("category") or "") if isinstance(score, dict) else ""
