"""What `status` prints: how far each cell of the latest run is, and which jobs work for it."""

from __future__ import annotations

import json
from typing import Any

from finepruner_lmms.matrix.cluster.submissions import describe, live
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.progress import score_text
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import plain


def status_text(store: Store, study: Study) -> str:
    """Done, running, waiting, failed and missing cells, with each failure's reason."""
    states = store.states(study.cells)
    counts = {name: sum(state.name == name for state in states) for name in ("done", "running", "failed", "missing")}
    if waiting := sum(state.name == "waiting" for state in states):
        counts["waiting for the judge"] = waiting
    lines = [f"{study.name}: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
    for cell, state in zip(study.cells, states, strict=True):
        text = score_text(state.result) if state.result else state.why
        lines.append(f"  {state.name:8} {cell.label}{': ' + text if text else ''}")
    if any(state.damaged for state in states):
        lines.append("damaged files are kept as *.damaged when `run` computes their cells anew")
    if others := store.others(study.cells):
        lines.append(
            f"{others} more finished cells are of other settings, code or checkpoints; they are kept, not shown"
        )
    lines += describe(store.root)
    return "\n".join(map(plain, lines)) + "\n"


def status_json(store: Store, study: Study) -> str:
    """The same for programs: `study`, `output`, `counts` by state, `cells`, `others`, `jobs`, and `problems` with them.

    A cell has its settings as `plan --format jsonl` has them, `state`, `reason` (null where there is none), `damaged`,
    `label`, `directory`, and of what is done `percent`, `standard_error`, `metrics`, `answered`, `seconds`.
    """
    cells = []
    states = store.states(study.cells)
    for cell, state, folder in zip(study.cells, states, store.cell_dirs(study.cells), strict=True):
        facts: dict[str, Any] = {"id": cell.id, "state": state.name, "label": cell.label, "task": cell.task}
        facts |= cell.method.model_dump(exclude={"given", "imported"}) | {"limit": cell.limit}
        facts |= {"reason": state.reason or None, "damaged": state.damaged, "directory": str(folder)}
        if state.result is not None:
            shown = {"percent", "standard_error", "metrics", "answered", "seconds"}
            facts |= state.result.model_dump(include=shown)
        cells.append(facts)
    names = ("done", "running", "waiting", "failed", "missing")
    found = {
        "study": study.name,
        "model": study.model,
        "output": str(store.root),
        "running": store.is_live(),
        "counts": {name: sum(state.name == name for state in states) for name in names},
        "cells": cells,
        "others": store.others(study.cells),
    }
    jobs = live(store.root)
    found["jobs"] = [
        {"id": job.id, "state": job.state, "executor": record.executor, "where": job.where, "why": job.why}
        for _, record, job in jobs.jobs
    ]
    return json.dumps(found | {"problems": jobs.problems}, indent=1, default=str) + "\n"
