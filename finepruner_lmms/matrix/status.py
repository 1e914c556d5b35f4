"""What `status` prints: how far each cell of the latest run is, and which jobs work for it."""

from __future__ import annotations

from finepruner_lmms.matrix.cluster.submissions import describe
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
