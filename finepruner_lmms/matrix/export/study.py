"""What is exported: the cells of a study with their results, and what is known of each question besides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from finepruner_lmms.files import split_lines
from finepruner_lmms.matrix.export.tables import Finished, finished
from finepruner_lmms.matrix.imports import alone
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.questions import NoQuestions, Questions, open_questions
from finepruner_lmms.matrix.records import Sample
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import State, Store


@dataclass
class Exported:
    """An output directory as exporters see it. `notes` is what they could not give, a line each."""

    store: Store
    study: Study
    states: list[State]
    pictures: int = 200
    """Of how many questions of a cell an exporter that shows pictures takes them."""
    notes: dict[str, None] = field(default_factory=dict)
    """In the order in which they were made, each once."""

    @classmethod
    def of(cls, store: Store, pictures: int = 200) -> Exported:
        """What is there now."""
        study = store.study()
        return cls(store, study, store.states(study.cells), pictures)

    @cached_property
    def finished(self) -> list[Finished]:
        """The cells that are done."""
        return finished(self.store, self.study, self.states)

    def samples(self, one: Finished) -> list[Sample]:
        """The lines of a finished cell."""
        return read_lines(self.store.root / one.folder / "samples.jsonl")

    def note(self, text: str) -> None:
        """Say it once at the end."""
        self.notes[text] = None

    def questions(self, one: Finished) -> Questions | None:
        """The questions of a cell's task as the data has them; None, with a note, where they are not at hand.

        Those of an imported row are the ones that a row of the matrix was asked.
        """
        cell = one.cell
        if cell.method.imported is not None:
            own = (c for c in self.study.cells if c.task == cell.task and c.method.imported is None)
            if (alike := next(own, None)) is None:
                return None
            cell = alike
        key = (cell.data, cell.task, cell.submission)
        if key not in self._opened:
            try:
                self._opened[key] = open_questions(cell.data, cell.task, cell.submission)
            except NoQuestions as error:
                self.note(f"{error}; its questions and images are left out")
                self._opened[key] = None
        return self._opened[key]

    def asked(self, one: Finished, sample: Sample) -> Questions | None:
        """The same, if the question of this sample is certainly among them."""
        questions, number = self.questions(one), sample["doc_id"]
        if questions is None or number not in questions:
            return None
        if one.cell.method.imported is not None and (
            sample["image"] == alone(number) or str(questions.target(number)) != str(sample["target"])
        ):
            return None
        return questions

    @cached_property
    def _opened(self) -> dict[tuple[str, str, bool], Questions | None]:
        return {}


def selections(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What was kept for each question of a cell, by `doc_id`, a record per layer, where `monitor` wrote it down."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for record in _records(folder):
        if isinstance(number := record.get("doc_id"), int) and isinstance(layer := record.get("layer"), int):
            kept = {name: value for name, value in record.items() if name not in ("task", "doc_id", "method", "budget")}
            found.setdefault(number, {})[layer] = kept  # a later attempt says the same
    return {number: [layers[layer] for layer in sorted(layers)] for number, layers in found.items()}


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("selections-rank*.jsonl")):
        for line in split_lines(file.read_text(encoding="utf-8", errors="replace")):
            try:
                record = json.loads(line)
            except ValueError:  # cut off while it was written
                continue
            if isinstance(record, dict):
                yield record
