"""The rows of a matrix: its methods multiplied out, each with its pruner, and where each parameter stands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.matrix.sections import MOST_ROWS
from finepruner_lmms.matrix.yaml_places import Document, Place, dotted

if TYPE_CHECKING:
    from finepruner_lmms.pruners import Pruner


@dataclass(frozen=True)
class Row:
    """One method with its parameters as they stand in the file.

    `place` is that of its entry; `items` says for each parameter which item of its list it is, or None without a list.
    """

    method: str
    given: tuple[tuple[str, Any], ...]
    place: Place
    items: tuple[int | None, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """What `build_pruner` gets."""
        return dict(self.given)

    @cached_property
    def pruner(self) -> Pruner:
        """The row's pruner; `ValueError` if method or parameters are wrong."""
        from finepruner_lmms.pruners import build_pruner
        from finepruner_lmms.pruners.registry import check_budget_given

        pruner = build_pruner(self.method, **self.arguments)
        check_budget_given(pruner)
        return pruner

    def where(self, parameter: str) -> Place:
        """Where a parameter stands: down to the item of a list, unless the method does not read it at all."""
        from finepruner_lmms.pruners import parameter_names

        place = (*self.place, parameter)
        if parameter not in self.arguments or parameter not in parameter_names(self.method):
            return place
        item = self.items[list(self.arguments).index(parameter)]
        return place if item is None else (*place, item)


def check_rows(methods: Sequence[str | dict[str, Any]], document: Document) -> list[Row]:
    """The rows of all entries; what is wrong with one is reported to `document`, and the row left out."""
    rows: list[Row] = []
    seen: dict[Pruner, Place] = {}
    for row in _multiply(methods, document):
        try:
            pruner = row.pruner
        except ValueError as error:
            report(row, error, document)
            continue
        if pruner in seen:
            problem = f"the same row as one of {dotted(seen[pruner])}: {pruner}"
            document.report(FieldError(dotted(row.place), problem), row.place)
        seen.setdefault(pruner, row.place)
        rows.append(row)
    return rows


def report(row: Row, error: ValueError, document: Document) -> None:
    """Report what is wrong with a row, at the parameter that it is about."""
    prefix = dotted(row.place)
    if isinstance(error, FieldError):
        document.report(error.under(prefix), row.where(error.field))
    else:  # a plug-in's own, which may not say what it is about
        document.report(FieldError(prefix, str(error)), row.place)


def _multiply(methods: Sequence[str | dict[str, Any]], document: Document) -> Iterator[Row]:
    """Lists multiply within an entry, the first-named varying slowest."""
    left = MOST_ROWS
    for number, entry in enumerate(methods):
        place: Place = ("methods", number)
        if isinstance(entry, str):
            left -= 1
            yield Row(entry, (), place)
            continue
        try:
            axes = [_axis(name, value) for name, value in entry.items() if name != "method"]
            method = entry.get("method")
            if not isinstance(method, str):
                raise FieldError("method", f"got {show(method)}; expected the name of one method", value=method)
            if (count := math.prod(map(len, axes))) > left:
                name = max(entry, key=lambda name: len(entry[name]) if isinstance(entry[name], list) else 0)
                before = "" if count > MOST_ROWS else f", after {MOST_ROWS - left:,} before it"
                problem = f"the lists multiply to {_many(count)} rows{before}; a file takes at most {MOST_ROWS:,}"
                raise FieldError(name, problem, fix="name fewer values")
        except FieldError as error:
            document.report(error.under(dotted(place)), (*place, error.field))
            continue
        left -= count
        for choice in itertools.product(*axes):
            yield Row(method, tuple((name, value) for name, value, _ in choice), place, tuple(i for *_, i in choice))


def _many(count: int) -> str:
    """A number of rows, which may be longer than a line."""
    return f"{count:,}" if count < 10**18 else "more than 10^18"


def _axis(name: str, value: Any) -> list[tuple[str, Any, int | None]]:
    """A parameter's values, each with its name and, if they are a list, its place there."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise FieldError(name, "the list is empty, so no row would be left", value=value)
    for one in values:
        if not isinstance(one, str | int | float | None):
            raise FieldError(name, f"got {show(one)}; parameters are single values or lists of them", value=one)
    return [(name, one, number if isinstance(value, list) else None) for number, one in enumerate(values)]
