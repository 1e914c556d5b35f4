"""The answers of a finished cell summed by image, remembered beside them.

To read 107,000 answers takes seconds, and a table reads those of hundreds of cells. So what they come to is kept in
`tally.npz`, of the samples with that sha256 alone. What does not fit them, or its own digest, or the score that the
result states, is computed anew; the file may be deleted.
"""

from __future__ import annotations

import io
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.benchmarks import Benchmark
from finepruner_lmms.benchmarks.protocol import LLAVA
from finepruner_lmms.files import read_bytes, write_bytes
from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.evidence import digest
from finepruner_lmms.matrix.measures import benchmark_for, has_samples
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Result
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.statistics.tally import Tally

if TYPE_CHECKING:
    from numpy import ndarray

_NAME = "tally.npz"
_RULES = 1
"""To be raised when a tally of the same samples becomes another."""


def tally_of(store: Store, cell: Cell, result: Result) -> Tally | None:
    """The tally of a finished cell; None where no question has a score: of a submission, or of lmms-eval's own task."""
    if result.submission is not None or not has_samples(result):
        return None
    folder, benchmark = store.cell_dir(cell), benchmark_for(cell.task, result)
    found = _remembered(folder / _NAME, benchmark, result)
    if found is None:
        metric = benchmark.metric.partition(",")[0]
        samples = [{**sample, metric: sample["score"]} for sample in read_lines(folder / "samples.jsonl")]
        if not samples:  # a score that was written down without answers
            return None
        found = benchmark.tally(samples, {sample["doc_id"]: sample["image"] for sample in samples})
        _remember(folder / _NAME, found, result)
    if result.judge is not None:  # scores by different judges do not compare
        found = replace(found, asked=f"{found.asked} {result.judge.name}")
    if result.spec.protocol != LLAVA:  # and neither do those by different rules
        found = replace(found, asked=f"{found.asked} {result.spec.protocol}")
    return found


def _remembered(file: Path, benchmark: Benchmark, result: Result) -> Tally | None:
    try:
        head, _, content = read_bytes(file).partition(b"\n")
        about = json.loads(head)
        if not isinstance(about, dict) or about != _about(result) | {"sha256": digest(content)}:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names, texts = arrays["images"].tobytes().decode(), json.loads(arrays["more"].tobytes())
            found = benchmark.tally_of(
                tuple(json.loads(names)), arrays["sums"], arrays["documents"], arrays["scores"], *texts
            )
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: it is computed anew
        return None
    stated = result.metrics.get(benchmark.metric) if result.percent is None else result.percent
    return found if stated is not None and math.isclose(found.value, stated, rel_tol=1e-6, abs_tol=1e-9) else None


def _remember(file: Path, tally: Tally, result: Result) -> None:
    """Keep it; where there is no place to, it is computed again."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, images=_bytes(list(tally.images)), sums=tally.sums, documents=tally.documents, scores=tally.scores,
        more=_bytes([tally.per_percent, tally.asked]),
    )  # fmt: skip
    content = buffer.getvalue()
    head = json.dumps(_about(result) | {"sha256": digest(content)}).encode()
    with suppress(OSError):
        write_bytes(file, head + b"\n" + content, lasting=False)


def _about(result: Result) -> dict[str, object]:
    return {"rules": _RULES, "samples": result.samples_sha256}


def _bytes(value: object) -> ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
