"""Writing what came of a cell, by the one process that has claimed it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.claims import Claim
from finepruner_lmms.matrix.plan import PlannedCell
from finepruner_lmms.matrix.records import Outcome, Sample
from finepruner_lmms.matrix.results import publish_submission, write_answered, write_result
from finepruner_lmms.matrix.traces import write_records


class Superseded(RuntimeError):
    """Another process took the cell over, since this one had shown no sign of life for long."""


def publish(
    cell: PlannedCell, claim: Claim, outcome: tuple[Outcome, list[Sample]], run: dict[str, object], seconds: float
) -> None:
    """Write what came of a cell. `Superseded` if it is another's meanwhile."""
    if not claim.counts:
        raise Superseded(f"{cell.label}: taken over after {claim.folder.name}; what was answered is kept")
    folder = cell.path
    found, samples = outcome
    result = found.model_dump(include={"answered", "expected", "cost", "speed"})
    if found.scores is not None:
        result |= found.scores.model_dump()
    if found.submission is not None:
        result["submission"] = publish_submission(folder, found.submission).model_dump()
    if found.traces:
        result["traces"] = write_records(folder, found.traces).model_dump()
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"id": cell.id, "spec": cell.spec(), "seconds": round(seconds, 3), "finished": finished}
    write = write_answered if cell.task in BENCHMARKS and BENCHMARKS[cell.task].judged else write_result
    write(folder, about | run | result, samples)
    shutil.rmtree(folder / "cache", ignore_errors=True)
