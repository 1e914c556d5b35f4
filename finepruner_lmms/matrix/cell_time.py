"""The time of one cell, from the model's sizes (`engine.roofline`) and what its benchmark asks (`workloads`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finepruner_lmms.engine.roofline import (
    GRAPHS,
    H100,
    Execution,
    Figure,
    Machine,
    Sizes,
    image_seconds,
    prefill_seconds,
    step_seconds,
)
from finepruner_lmms.matrix.workloads import workload

CELL = Figure(
    3.0, "s", "starting and scoring an evaluation",
    "0.7 to 3.1 s with a small model on a CPU, measured; scoring that takes longer is not counted",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A cell as its time depends on it: how much of which benchmark, and the visual tokens entering each layer."""

    task: str
    visual: tuple[int, ...]
    limit: int | None = None
    whole: int | None = None
    """How many questions there are; None for those of the public data set."""

    @property
    def questions(self) -> int:
        """How many."""
        whole = int(workload(self.task).questions.value) if self.whole is None else self.whole
        return whole if self.limit is None else min(self.limit, whole)


@dataclass(frozen=True)
class Launched:
    """How cells are run."""

    processes: int = 1
    batch_size: int = 16
    machine: Machine = H100
    execution: Execution = GRAPHS


@dataclass(frozen=True)
class Parts:
    """The seconds of one process in a cell. `host` overlaps with the others where the execution says so."""

    vision: float
    prefill: float
    decode: float
    host: float
    total: float


def cell_parts(sizes: Sizes, asked: Asked, how: Launched) -> Parts:
    """How long one cell takes where questions are shared evenly between processes, and each image is encoded once."""
    work = workload(asked.task)
    share = math.ceil(asked.questions / how.processes)
    images = share * work.images.value / work.questions.value
    together = max(1, min(int(how.execution.images_at_once.value), how.batch_size))
    batch = min(how.batch_size, share)
    lengths = [round(work.text.value) + visual for visual in asked.visual]
    batches = share / batch
    vision = images / together * image_seconds(sizes, how.machine, how.execution, together)
    prefill = batches * prefill_seconds(sizes, how.machine, how.execution, lengths, batch)
    steps = (work.steps.value - 1) * batches
    decode = steps * step_seconds(sizes, how.machine, how.execution, lengths, batch)
    host = share * how.execution.host_question.value
    model = vision + prefill + decode
    total = max(model, host) if how.execution.overlapped else model + host
    return Parts(vision, prefill, decode, host, CELL.value + total)
