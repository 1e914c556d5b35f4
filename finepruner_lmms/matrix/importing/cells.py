"""Cells of what was answered elsewhere, and their results on disk."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.judge import mmvet
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.matrix.foreign import ForeignRun, ForeignTask
from finepruner_lmms.matrix.importing.lines import Made
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.results import write_answered, write_result
from finepruner_lmms.matrix.sections import ModelSection
from finepruner_lmms.matrix.store import Store


def cell_of(run: ForeignRun, row: Any, task: ForeignTask, made: Made) -> Cell:
    """A cell whose identity is what was answered, under which settings of the other run."""
    lines = hashlib.sha256(repr(made.samples).encode("utf-8", "surrogatepass")).hexdigest()
    identity = Identity(
        settings=hashlib.sha256(f"import {row.label} {run.arguments}".encode()).hexdigest()[:12],
        dtype="unknown",
        checkpoint=run.model,
        libraries={"lmms_eval": run.version} if run.version else {},
        engine={},
        method={},
        task=task.name,
        data=lines[:12],
    )
    return Cell(
        id=identity.id,
        slug=re.sub(r"[^A-Za-z0-9.]+", "-", f"{task.benchmark}-{row.label}").strip("-")[:80],
        row=0,
        task=task.benchmark,
        method=row,
        model=ModelSection(pretrained=run.model),
        limit=None,
        data="imported",
        submission=False,
        identity=identity,
        judged=made.judge is not None or made.waiting,
    )


def write_cell(store: Store, cell: Cell, run: ForeignRun, label: str, made: Made) -> None:
    """Its result, or its answers alone where a judge is still to score them."""
    folder = store.cell_dir(cell)
    folder.mkdir(parents=True, exist_ok=True)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    result: dict[str, Any] = {"id": cell.id, "spec": cell.spec(), "imported": label, "finished": finished}
    result |= {"answered": len(made.samples), "expected": len(made.samples), "cost": None}
    if made.waiting:
        write_answered(folder, result, made.samples)
        return
    benchmark = BENCHMARKS[made.benchmark]
    images = {sample["doc_id"]: sample["image"] for sample in made.samples}
    result |= {
        "metrics": {benchmark.metric: benchmark.value(made.logged)}
        | benchmark.beside_of(made.logged)
        | _capabilities(made),
        "percent": benchmark.percent(made.logged),
        "standard_error": benchmark.standard_error(made.logged, images),
    }
    if made.judge is not None:
        result["judge"] = {"name": made.judge}
    write_result(folder, result, made.samples)


def _capabilities(made: Made) -> dict[str, float]:
    """MM-Vet's scores of single capabilities, which a judged result has besides."""
    if made.benchmark != "mmvet":
        return {}
    totals = mmvet.totals([sample["score"] for sample in made.samples])
    return {name: value for name, value in totals.items() if name != "total"}
