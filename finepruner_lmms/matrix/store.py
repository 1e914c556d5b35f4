"""The store: one directory per cell, and what is true about it.

    runs/<name>/
      matrix.json                   rows and cells of the latest `run`; matrix.copy.json is the same
      imports.json                  rows that `import` made of results of other runs; their cells are among the others
      launches/<n>/                 plan.json, events.jsonl and log.txt of one worker
      cells/<slug>-<id>/
        status.json                 the attempt that is running or ran last: host, pid, start, launch
        attempt-<n>/                files that lmms-eval writes by itself
        cache/                      answers of an unfinished attempt
        answers.jsonl, answered.json   where a judge scores: what samples and result are made of
        samples.jsonl               one line per question: target, answer, score, image
        verified.json               which files were found to be what the result says, so that they are not read again
        *.damaged                   what was not, set aside by the attempt that computed it anew
        submission.json, .xlsx      for the server, where only that scores
        result.json                 written last, atomically; a cell is done if and only if this is valid
        error.json                  why the last attempt failed
      judgements.jsonl              what a judge said, by question, answer and judge, for all cells

Nothing is ever deleted but the cache of a finished cell; cells of other settings or code stay where they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.claims import Locked, is_locked, lock
from finepruner_lmms.errors import Failure
from finepruner_lmms.files import set_aside, write_json
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.matrix.attempts import holder, last_attempt
from finepruner_lmms.matrix.evidence import checksum
from finepruner_lmms.matrix.imports import Imports, read_imports, with_imports, without_imports
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import CellError, Damage, Result, Status, load, load_json, parse, read
from finepruner_lmms.matrix.results import read_cell
from finepruner_lmms.output import one_line

_STUDY, _STUDY_COPY = "matrix.json", "matrix.copy.json"


class StoreError(Failure, ValueError):
    """An output directory that cannot be used as asked."""


@dataclass(frozen=True)
class State:
    """`name`: done, waiting (for the judge), failed, running or missing; `reason` says why, where there is a why.

    `damaged`: a result is there, but it is not the one that was written, or not true.
    """

    name: str
    reason: str = ""
    result: Result | None = None
    damaged: bool = False

    @property
    def why(self) -> str:
        """The reason, for people."""
        return f"damaged: {self.reason}" if self.damaged else self.reason


class Store:
    """An output directory."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._warned: set[str] = set()

    # -- the matrix -----------------------------------------------------------------------------------------------

    def save_study(self, study: Study) -> None:
        """Remember what `status` and `table` are to show, and a copy of it."""
        self.root.mkdir(parents=True, exist_ok=True)
        content = without_imports(study).model_dump(mode="json")
        content["checksum"] = checksum(content)
        for name in (_STUDY, _STUDY_COPY):
            with suppress(Damage):
                if _load_study(self.root / name) is None or (self.root / name).is_file():
                    continue
            set_aside(self.root / name)
        for name in (_STUDY, _STUDY_COPY):
            write_json(self.root / name, content)

    def study(self) -> Study:
        """What `save_study` was given, and the rows that were imported; `StoreError` where there is neither.

        Where a file is damaged, the standard error says so; of what was run there is a copy.
        """
        if not self.root.is_dir():
            raise StoreError(f"output: {str(self.root)!r} is not a folder; `run` makes one under runs/<name>")
        try:
            imports = self.imports()
        except StoreError as error:
            self._warn(f"{error}; they are not shown")
            imports = Imports()
        study = with_imports(self._own_study(), imports, self.root.resolve().name)
        if study is None:
            raise StoreError(f"output: {str(self.root)!r} holds no matrix.json, so nothing was run into it")
        return study

    def _own_study(self) -> Study | None:
        """What was run here, from the copy where that is all there is; None where nothing was."""
        flaw = ""
        try:
            if (study := _load_study(self.root / _STUDY)) is not None:
                return study
        except Damage as damage:
            flaw = str(damage)
        with suppress(Damage):
            if (study := _load_study(self.root / _STUDY_COPY)) is not None:
                flaw = flaw or f"{_STUDY} is missing"
                self._warn(f"{self.root}: {flaw}; its copy, {_STUDY_COPY}, is read instead, until `run` mends it")
                return study
        if flaw:
            raise StoreError(
                f"output: {str(self.root)!r}: {flaw}; the file is damaged or of another version: `run` with the same "
                "matrix file and --output writes it again, and no result is lost"
            )
        return None

    def imports(self) -> Imports:
        """The rows that were imported. `StoreError` where `imports.json` holds something else."""
        try:
            return read_imports(self.root)
        except Damage as damage:
            raise StoreError(
                f"output: {str(self.root)!r}: {damage}; move the file away, and import its rows again"
            ) from None

    def _warn(self, text: str) -> None:
        """Say it once."""
        if text not in self._warned:
            self._warned.add(text)
            sys.stderr.write(f"{one_line(text)}\n")

    # -- cells ----------------------------------------------------------------------------------------------------

    def cell_dir(self, cell: Cell) -> Path:
        """The directory of a cell: that with its id, since the same cell may have been named in other words before."""
        named = self.root / "cells" / cell.folder
        if named.is_dir():
            return named
        return next(iter(self.root.glob(f"cells/*-{cell.id}")), named)

    def cell_dirs(self, cells: Iterable[Cell]) -> list[Path]:
        """The directory of each cell, as `cell_dir`: what is there is looked through once for all."""
        folder = self.root / "cells"
        there = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
        by_id = {name.rpartition("-")[2]: name for name in reversed(there)}
        names = set(there)
        return [folder / (c.folder if c.folder in names else by_id.get(c.id, c.folder)) for c in cells]

    def explain_missing(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Why the stored result of the same settings does not count for a cell, by the cell's id.

        Of several stored results the one with the fewest differences is named; cells of new settings are left out.
        """
        stored = [found for file in sorted(self.root.glob("cells/*/result.json")) if (found := _stored(file))]
        alike: dict[tuple[str, str], list[tuple[Identity, str]]] = {}
        for folder, task, other in stored:
            alike.setdefault((task, other.settings), []).append((other, folder))
        reasons = {}
        for cell in cells:
            planned = cell.identity
            if near := alike.get((cell.task, planned.settings)):
                explained = [(planned.changes_since(other), folder) for other, folder in near]
                changes, folder = min(explained, key=lambda pair: len(pair[0]))
                if changes:
                    reasons[cell.id] = f"{'; '.join(changes)} (since {folder})"
        return reasons

    def state(self, cell: Cell) -> State:
        """What is true about a cell."""
        return _state(self.cell_dir(cell), cell)

    def states(self, cells: Sequence[Cell]) -> list[State]:
        """The state of each cell."""
        return [_state(folder, cell) for folder, cell in zip(self.cell_dirs(cells), cells, strict=True)]

    def others(self, cells: Iterable[Cell]) -> int:
        """How many finished cells there are that do not belong to the matrix: other settings, code or checkpoint."""
        mine = set(self.cell_dirs(cells))
        return sum(1 for result in self.root.glob("cells/*/result.json") if result.parent not in mine)

    def new_launch(self) -> Path:
        """A fresh directory for one worker; others may make theirs at the same time."""
        folder = self.root / "launches"
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(d.name) for d in folder.iterdir() if d.name.isdecimal()), default=0)
        while True:
            try:
                (folder / str(number)).mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder / str(number)

    # -- one run at a time ----------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory; `StoreError` if another run does. Ends with the process, also where that is killed."""
        with ExitStack() as held:
            try:
                held.enter_context(lock(self._lock))
            except Locked as error:
                raise StoreError(f"output: {str(self.root)!r} is in use by {error.holder}") from None
            yield

    def is_live(self) -> bool:
        """Whether a run holds this directory now. Asking never keeps a run from starting."""
        return is_locked(self._lock)

    @property
    def _lock(self) -> Path:
        return self.root / ".run"


def _state(folder: Path, cell: Cell) -> State:
    """What is true about a cell whose directory is `folder`."""
    if not folder.is_dir():
        there = next(
            (place for place in (folder, folder.parent) if os.path.lexists(place) and not place.is_dir()), None
        )
        if there is None:
            return State("missing")
        return State("failed", f"{there.name} is no folder", damaged=True)
    found, owner = read_cell(folder, cell), None
    if found.result is None and found.answers is None and (owner := holder(folder)) is None:
        found = read_cell(folder, cell)  # a worker writes what came of a cell, then lets go: it may just have done so
    if found.result is not None:
        return State("done", result=found.result)
    if found.answers is not None:
        return State("waiting", found.reason, damaged=found.damaged)
    try:
        status, error = load(Status, folder / "status.json"), load(CellError, folder / "error.json")
    except Damage as damage:
        owner, status, error = None, None, None
        found = found if found.damaged else replace(found, reason=str(damage))
    if owner is not None:
        return State("running", f"attempt {last_attempt(folder)}: {owner}")
    if error is not None:
        return State("failed", f"{error.error}: {error.message}")
    if found.reason:
        return State("failed", found.reason, damaged=found.damaged)
    return State("missing", "interrupted" if status is not None else "")


def _stored(file: Path) -> tuple[str, str, Identity] | None:
    """Folder, task and identity of a result, if it has them."""
    try:
        result = load(Result, file)
    except Damage:
        return None
    if result is None or result.spec.identity is None:
        return None
    return file.parent.name, result.spec.task, result.spec.identity


def _load_study(file: Path) -> Study | None:
    """The study in a file; None where there is no file. `Damage` unless it holds what was saved."""
    if (content := read(file)) is None:
        return None
    raw = load_json(content, file.name)
    study = parse(Study, raw, file.name)
    if "checksum" in raw and raw["checksum"] != checksum(raw):  # older versions wrote none
        raise Damage(f"{file.name} was changed after it was written (its checksum is of another content)")
    for number, cell in enumerate(study.cells):
        place = f"{file.name}: cells.{number}"
        if cell.task not in BENCHMARKS and not cell.definition:
            raise Damage(f"{place}.task is {cell.task!r}, which is no benchmark")
        if not 0 <= cell.row < len(study.rows) or study.rows[cell.row] != cell.method:
            raise Damage(f"{place}.row is {cell.row}, which is of another method")
    return study
