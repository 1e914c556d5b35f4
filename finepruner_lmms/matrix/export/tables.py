"""Cells and samples as two tables with typed columns: what `export` writes and `query` asks.

A column that a cell has nothing for is null, never 0 and never an empty text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finepruner_lmms.budget import parse_budget
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Result, Sample
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import State, Store

if TYPE_CHECKING:
    import pyarrow as pa

Values = dict[str, Any]

CELL_COLUMNS = {
    "cell": "string",  # its id
    "row": "string",  # as `compare` takes it
    "method": "string",
    "budget": "string",  # as given: a count, a share such as 22%; null for every token
    "tokens": "double",  # the budget in visual tokens
    "parameters": "string",  # JSON
    "imported": "string",  # whose results they are, of a row that `import` made
    "task": "string",
    "model": "string",
    "data": "string",
    "limit": "int64",
    "state": "string",
    "reason": "string",
    "metric": "string",
    "score": "double",  # as the field prints it: percent; MME in points
    "percent": "double",  # of what a perfect model gets
    "standard_error": "double",  # of `percent`
    "answered": "int64",
    "expected": "int64",
    "judge": "string",
    "seconds": "double",
    "questions_per_second": "double",
    "first_token_p50": "double",
    "first_token_p95": "double",
    "seconds_per_token": "double",
    "peak_bytes": "int64",
    "conditions": "string",
    "cost": "string",  # JSON: what one prefill took
    "dtype": "string",
    "checkpoint": "string",
    "data_identity": "string",
    "provenance": "string",  # JSON
    "folder": "string",
}
"""Of the table of cells: name and Arrow type."""

SAMPLE_COLUMNS = {
    "cell": "string",
    "doc_id": "int64",  # in the whole data set
    "image": "string",  # its name, or a hash of it; questions about one picture share it
    "target": "string",  # JSON where it is no text
    "answer": "string",
    "score": "double",  # null where a question alone has none (MMBench asks in several orders)
    "question": "string",  # of imported samples, which carry it
    "details": "string",  # JSON: what the benchmark's scorer read, where that is more than a number
}
"""Of the table of samples as they are stored, by `doc_id` within a cell."""

NAMES = ("row", "method", "budget", "task")
"""Of the cell, and repeated with each of its samples, so that most questions need no join."""


@dataclass(frozen=True)
class Finished:
    """A cell that is done, with its result."""

    cell: Cell
    result: Result
    folder: str
    """In the output directory."""


def finished(store: Store, study: Study, states: Sequence[State]) -> list[Finished]:
    """The cells that are done."""
    folders = store.cell_dirs(study.cells)
    return [
        Finished(cell, state.result, folder.relative_to(store.root).as_posix())
        for cell, state, folder in zip(study.cells, states, folders, strict=True)
        if state.result is not None
    ]


def cell_rows(store: Store, study: Study, states: Sequence[State]) -> list[Values]:
    """A row per cell, done or not, with every column of `CELL_COLUMNS`."""
    folders = store.cell_dirs(study.cells)
    return [
        dict.fromkeys(CELL_COLUMNS)
        | _of_cell(cell, state, None if study.images_differ else study.num_visual_tokens)
        | {"folder": folder.relative_to(store.root).as_posix()}
        | (_of_result(cell, state.result) if state.result is not None else {})
        for cell, state, folder in zip(study.cells, states, folders, strict=True)
    ]


def _of_cell(cell: Cell, state: State, everything: int | None) -> Values:
    method, known = cell.method, cell.method.imported is None
    budget = parse_budget(method.budget)
    counted = known and (everything is not None or budget.count is not None)  # else each image has its own number
    return {
        "cell": cell.id,
        "row": method.label,
        "method": method.method,
        "budget": None if method.budget is None else str(method.budget),
        "tokens": float(budget.tokens(everything or 0)) if counted else None,
        "parameters": json.dumps(method.parameters, ensure_ascii=False, sort_keys=True) if known else None,
        "imported": method.imported,
        "task": cell.task,
        "model": cell.model.pretrained,
        "data": cell.data if known else None,
        "limit": cell.limit,
        "state": state.name,
        "reason": state.reason or None,
        "dtype": cell.identity.dtype,
        "checkpoint": cell.identity.checkpoint,
        "data_identity": cell.identity.data,
    }


def _of_result(cell: Cell, result: Result) -> Values:
    found: Values = {
        "answered": result.answered,
        "expected": result.expected,
        "judge": None if result.judge is None else result.judge.name,
        "seconds": result.seconds,
        "cost": None if result.cost is None else json.dumps(result.cost, sort_keys=True),
    }
    if result.submission is None:
        benchmark = benchmark_for(cell.task, result)
        found |= {
            "metric": benchmark.metric,
            "score": benchmark.shown(result.metrics[benchmark.metric]),
            "percent": result.percent,
            "standard_error": result.standard_error,
        }
    if (speed := result.speed) is not None:
        names = ("questions_per_second", "first_token_p50", "first_token_p95", "seconds_per_token", "peak_bytes")
        found |= {name: getattr(speed, name) for name in names} | {"conditions": str(speed.conditions)}
    if result.provenance is not None:
        found["provenance"] = result.provenance.model_dump_json(exclude_none=True)
    return found


def sample_rows(store: Store, one: Finished) -> Iterator[Values]:
    """A row per question of a finished cell, with every column of `SAMPLE_COLUMNS`."""
    for sample in read_lines(store.root / one.folder / "samples.jsonl"):
        yield _of_sample(one.cell.id, sample)


def names_of(cell: Cell) -> Values:
    """The columns `NAMES` of a cell."""
    budget = cell.method.budget
    return {
        "row": cell.method.label,
        "method": cell.method.method,
        "budget": None if budget is None else str(budget),
        "task": cell.task,
    }


def _of_sample(cell: str, sample: Sample) -> Values:
    score = sample.get("score")
    structured = isinstance(score, dict | list)
    return {
        "cell": cell,
        "doc_id": sample["doc_id"],
        "image": sample.get("image"),
        "target": as_text(sample.get("target")),
        "answer": as_text(sample.get("answer")),
        "score": number_of(score),
        "question": sample.get("question"),
        "details": json.dumps(score, ensure_ascii=False, sort_keys=True) if structured else None,
    }


def number_of(score: Any) -> float | None:
    """What a question counts by itself, where it counts a number."""
    if isinstance(score, dict):
        score = score.get("score")
    return float(score) if isinstance(score, int | float) else None  # true is 1


def as_text(value: Any) -> str | None:
    """A text as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def arrow_table(rows: list[Values], columns: dict[str, str]) -> pa.Table:
    """Rows as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema(columns))


def schema(columns: dict[str, str]) -> pa.Schema:
    """The Arrow schema of columns."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
