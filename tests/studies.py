"""Cells and studies for tests that write results by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.lmms.identity import Identity
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Cell, Method, Study
from finepruner_lmms.matrix.records import Sample
from finepruner_lmms.matrix.results import read_lines, write_result
from finepruner_lmms.matrix.sections import ModelSection
from finepruner_lmms.matrix.store import Store

IDENTITY = Identity(
    settings="s", dtype="float16", checkpoint="c", libraries={"torch": "2.11.0"}, engine={"engine": "e"},
    method={"fastv": "m"}, task="t", data="d",
)  # fmt: skip
VANILLA = Method(method="vanilla", budget=None, parameters={}, given={})


def method(name: str, budget: int | str | None = None, parameters: dict[str, Any] | None = None, **given) -> Method:
    """A row; what the file gives is a parameter, too."""
    return Method(method=name, budget=budget, parameters={**(parameters or {}), **given}, given=given)


def cell(name: str, task: str, row: int = 0, of: Method = VANILLA, **changes) -> Cell:
    """A cell with the id `name`, in the directory `<task>-<name>`."""
    values: dict[str, Any] = {"id": name, "slug": task, "row": row, "task": task, "method": of, "data": "demo"}
    values |= {"model": ModelSection(), "limit": None, "submission": False, "identity": IDENTITY}
    return Cell(**(values | changes))


def stored_cell(name: str, task: str, row: int = 0, of: Method = VANILLA, **changes) -> Cell:
    """A cell whose id is that of its identity, as a result on disk must have it."""
    identity = IDENTITY.model_copy(update={"settings": name})
    return cell(identity.id, task, row, of, identity=identity, **changes)


def study(rows: list[Method], cells: list[Cell], num_layers: int = 32, name: str = "study") -> Study:
    """Rows and cells, in which the tasks are those of the cells."""
    tasks = tuple(dict.fromkeys(cell.task for cell in cells))
    return Study(
        name=name, model="demo", num_layers=num_layers, num_visual_tokens=576, tasks=tasks, rows=tuple(rows),
        cells=tuple(cells),
    )  # fmt: skip


def rewrite(folder: Path, **changes) -> None:
    """Write a result again with other values, as if it had been so from the beginning."""
    known = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    write_result(folder, known | changes, read_lines(folder / "samples.jsonl"))


def lines_of(task: str, share: float, images: int = 50, each: int = 4) -> list[Sample]:
    """Answers to `gqa` or `mme` that come to a share of the maximum, and differ between images where they can.

    MME's are `images` pairs in each of four categories, of which a right half counts a quarter.
    """
    if task == "gqa":
        right = round(share * images * each)
        return [
            {"doc_id": n, "image": f"i{n // each}", "target": "a", "answer": "b", "score": float(n < right)}
            for n in range(images * each)
        ]
    lines: list[Sample] = []
    left = share * 4 * images
    for pair in range(4 * images):
        hits = 2 if left >= 1 else 1 if left >= 0.25 else 0
        left -= (0, 0.25, 1)[hits]
        for place in range(2):
            entry = {"question_id": f"p{pair}", "category": "abcd"[pair % 4], "score": float(place < hits)}
            about = {"doc_id": len(lines), "image": f"p{pair}", "target": "yes", "answer": "yes"}
            lines.append({**about, "score": entry})
    return lines


def finish(store: Store, of: Cell, lines: list[Sample], **changes) -> None:
    """Write down that a cell is done, with what its lines come to."""
    benchmark = BENCHMARKS[of.task]
    metric = benchmark.metric.partition(",")[0]
    logged = [{**line, metric: line["score"]} for line in lines]
    value, percent, error = benchmark.figures(logged, {line["doc_id"]: line["image"] for line in lines})
    result = {"id": of.id, "metrics": {benchmark.metric: value}, "percent": percent, "standard_error": error}
    result |= {"answered": len(lines), "expected": len(lines), "seconds": 1, "spec": {"task": of.task}}
    begin_attempt(store.cell_dir(of), "1")
    write_result(store.cell_dir(of), result | changes, lines)
