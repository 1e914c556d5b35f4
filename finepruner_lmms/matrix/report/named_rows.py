"""Rows of studies by what people call them: a label, rows of several seeds as one, and a folder before a colon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.matrix.plan import Cell, Method, Study
from finepruner_lmms.matrix.store import Store, StoreError


@dataclass(frozen=True)
class NamedRow:
    """A row of a study; `places` are those of its seeds among the study's rows, one where it has none."""

    label: str
    store: Store
    study: Study
    places: tuple[int, ...]

    @property
    def imported(self) -> bool:
        """Whether it was run elsewhere."""
        return self.study.rows[self.places[0]].imported is not None

    def cells(self, task: str) -> list[Cell]:
        """Those of one task, one per seed."""
        return [cell for cell in self.study.cells if cell.row in self.places and cell.task == task]


def find_row(store: Store, label: str, study: Study | None = None) -> NamedRow:
    """The row that `label` names: `vanilla`, `fastv 64`, `random 64 seed=1`, and `random 64` for all of its seeds.

    `StoreError` if there is none.
    """
    study = store.study() if study is None else study
    named = rows_of(study)
    wanted = " ".join(label.split())
    if wanted not in named:
        raise StoreError(f"row: got {label!r}{nearest(wanted, named)}; rows: {', '.join(named)}")
    return NamedRow(wanted, store, study, named[wanted])


def rows_of(study: Study) -> dict[str, tuple[int, ...]]:
    """What each row of a study is called, and the mean over seeds of those that differ in their seed alone."""
    named = {row.label: (place,) for place, row in reversed(list(enumerate(study.rows)))}
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(study.rows):
        if "seed" in row.given and row.imported is None:
            groups.setdefault(_without_seed(row).label, []).append(place)
    merged = {label: tuple(places) for label, places in groups.items()}
    return dict(sorted((merged | named).items(), key=lambda item: (min(item[1]), len(item[1]))))


def _without_seed(row: Method) -> Method:
    given = {name: value for name, value in row.given.items() if name != "seed"}
    return row.model_copy(update={"given": given})


def split_place(text: str) -> tuple[Path, str]:
    """`DIR:ROW` in two, by the longest folder that is there, since both may hold colons. `FieldError` if none is."""
    for end in _colons(text):
        if (folder := Path(text[:end])).is_dir() and text[end + 1 :].strip():
            return folder, text[end + 1 :]
    raise FieldError(
        "row", f"got {text!r}; expected DIR:ROW, a folder of results and a row of its study", value=text,
        fix="or give one folder and two rows",
    )  # fmt: skip


def _colons(text: str) -> Iterable[int]:
    """Where colons stand, the last first."""
    return (place for place in range(len(text) - 1, 0, -1) if text[place] == ":")
