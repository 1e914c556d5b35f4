"""How long a study will take, before anything runs: by finished cells, a bench of this machine, or for an H100.

The time of a cell follows from the model's sizes (`engine.roofline`) and what its benchmark asks (`workloads`).
Finished cells of the study say by how much that is wrong here, and correct it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.roofline import (
    CPU,
    EAGER,
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
from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.gpus import count_gpus
from finepruner_lmms.matrix.machine import measured_machine
from finepruner_lmms.matrix.modes import Mode, choose_mode, makespan, num_processes
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Result
from finepruner_lmms.matrix.store import State
from finepruner_lmms.matrix.workloads import workload

CELL = Figure(
    3.0, "s", "starting and scoring an evaluation",
    "0.7 to 3.1 s with a small model on a CPU, measured; scoring that takes longer is not counted",
)  # fmt: skip
START = Figure(60.0, "s", "importing, reading 13 GB of weights", "assumption")
IMPORTS = Figure(
    28.0, "s", "importing lmms-eval and indexing its tasks, which each launch of its own does",
    "26 to 30 s on two CPU cores, measured with a tiny model",
)  # fmt: skip
NODE = Figure(8, "GPUs", "of the machine that is assumed where this one has none", "assumption")
_LARGE = 1e9
"""Weights of a decoder from which on it is run on GPUs: of smaller ones nothing is known before a cell is finished."""


@dataclass(frozen=True)
class Asked:
    """A cell as its time depends on it: how much of which benchmark, and the visual tokens entering each layer."""

    task: str
    visual: tuple[int, ...]
    limit: int | None = None

    @property
    def questions(self) -> int:
        """How many."""
        whole = int(workload(self.task).questions.value)
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


@dataclass(frozen=True)
class Estimate:
    """What is left to do takes `modes[mode]` seconds, and each cell `seconds`, by its id, in the way of that mode.

    `gpus` is how many are used (0: the CPU), `processes` how many work; `basis` says what it rests on.
    """

    seconds: Mapping[str, float]
    gpus: int
    basis: str
    modes: Mapping[str, float]
    mode: Mode
    processes: int = 1

    @property
    def total(self) -> float:
        """Of all cells and of starting, in the chosen mode."""
        return self.modes[self.mode]


def estimate_study(
    matrix: Matrix,
    study: Study,
    states: Sequence[State],
    left: Sequence[Cell],
    benches: Path,
    gpus: Callable[[], int] = count_gpus,
) -> Estimate | None:
    """How long the cells that are left take on this machine; None where nothing is known.

    `benches` is where folders of `finepruner bench` are. Without GPUs here, a checkpoint that needs them is planned
    for `NODE`.
    """
    file, sizes = matrix.file, Sizes.of(matrix.shape)
    finished = [(cell, s.result) for cell, s in zip(study.cells, states, strict=True) if s.result is not None]
    large = sizes.decoder_bytes / sizes.element_bytes >= _LARGE
    here = 0 if file.model.device == "cpu" else gpus()
    elsewhere = large and not here and file.model.device != "cpu"  # planned here, to be run on GPUs
    machine = None if elsewhere else measured_machine(benches, "cuda" if here else "cpu")
    if not finished and machine is None and not here and not elsewhere:
        return None
    devices = int(NODE.value) if elsewhere and not finished else here
    processes = num_processes(file.launch, devices)
    eager = not devices or file.model.execution == "eager"
    machine = machine or (H100 if devices else CPU)
    how = Launched(processes, file.launch.batch_size, machine, EAGER if eager else GRAPHS)
    layers, tokens = study.num_layers, study.num_visual_tokens
    schedules = [tuple(row.pruner.schedule(layers, tokens)) for row in matrix.rows]
    shared = cell_seconds(sizes, left, schedules, finished, how)
    # on a CPU processes share the cores, so that a cell of one process takes as long as one of all
    own = cell_seconds(sizes, left, schedules, finished, replace(how, processes=1)) if devices else shared
    start = START.value if large else 0.0
    apart = sum(shared.values()) + len(left) * (IMPORTS.value + start)
    together = start + sum(shared.values())
    packed = start + makespan(own.values(), processes) if devices else together
    modes = {"resident": together, "packed": packed, "isolated": apart}
    mode = choose_mode(file.launch, processes, len(left), modes)
    seconds = own if mode == "packed" else shared
    used = min(processes, devices)
    if finished:
        basis = f"by the {len(finished)} finished cell{'s' * (len(finished) > 1)} of this study"
    else:
        rests_on = "docs/performance.md" if machine is H100 else machine.flops.source
        alone = "" if file.launch.fan_out in ("off", 1) or len(left) == 1 else "; each cell answered alone"
        most = f"; every image as the largest, {tokens:,} visual tokens" if _varies(matrix) else ""
        basis = f"an estimate for {machine.name}, by {rests_on}{alone}{most}"
    return Estimate(seconds, used, basis, modes, mode, processes)


def _varies(matrix: Matrix) -> bool:
    """Whether images differ in their number of visual tokens."""
    return Geometry.of(matrix.shape).varies


def cell_seconds(
    sizes: Sizes,
    cells: Sequence[Cell],
    schedules: Sequence[tuple[int, ...]],
    finished: Sequence[tuple[Cell, Result]],
    how: Launched,
) -> dict[str, float]:
    """The time of each of `cells`, corrected by what `finished` ones took: of the same task, or else all of them.

    `schedules` are those of the study's rows: the visual tokens entering each layer.
    """

    kinds = {schedule: number for number, schedule in enumerate(dict.fromkeys(schedules))}
    kind = [kinds[schedule] for schedule in schedules]  # thousands of rows have few schedules
    known: dict[Any, float] = {}

    def predicted(cell: Cell, how: Launched) -> float:
        key = kind[cell.row], cell.task, cell.limit, how.processes, how.batch_size, how.execution.name
        if key not in known:
            known[key] = cell_parts(sizes, Asked(cell.task, schedules[cell.row], cell.limit), how).total
        return known[key]

    taken: dict[str, float] = {}
    expected: dict[str, float] = {}
    for cell, result in finished:  # summed, since of cells that were answered at once one took the time of all
        taken[cell.task] = taken.get(cell.task, 0.0) + seconds_of(result)
        expected[cell.task] = expected.get(cell.task, 0.0) + predicted(cell, _as_run(how, result))
    typical = sum(taken.values()) / sum(expected.values()) if taken else 1.0
    off = {task: taken[task] / expected[task] for task in taken}
    return {cell.id: predicted(cell, how) * off.get(cell.task, typical) for cell in cells}


def _as_run(how: Launched, result: Result) -> Launched:
    """How a finished cell was launched, which may be another way than what is planned."""
    if result.speed is None:
        return how
    ran = result.speed.conditions
    return Launched(ran.processes, ran.batch_size, how.machine, EAGER if ran.execution == "eager" else how.execution)


def seconds_of(result: Result) -> float:
    """The time that all of a finished cell's questions take, also where an earlier attempt had answered some."""
    speed = result.speed
    assert result.seconds is not None, "imported results are no cell of a plan"
    if speed is not None and speed.attempts > 1:  # `seconds` is the last attempt's
        return speed.seconds / speed.conditions.together
    if speed is None or speed.questions >= result.answered:
        return result.seconds
    return result.seconds + (result.answered - speed.questions) / speed.questions_per_second
