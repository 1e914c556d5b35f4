"""How long a study will take, before anything runs: by finished cells, a bench of this machine, or for an H100.

The time of a cell is predicted (`cell_time`), and corrected by finished cells (`pace`): those of the study, or of other
limits and rows of the same model in the same output (`earlier`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from finepruner_lmms.engine.geometry import Geometry
from finepruner_lmms.engine.roofline import CPU, EAGER, GRAPHS, H100, Figure, Sizes
from finepruner_lmms.matrix.cell_time import Asked, Launched
from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.earlier import earlier_results
from finepruner_lmms.matrix.gpus import count_gpus
from finepruner_lmms.matrix.machine import measured_machine
from finepruner_lmms.matrix.modes import Mode, choose_mode, makespan, num_processes
from finepruner_lmms.matrix.pace import Finished, cell_seconds
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.matrix.time_range import time_range
from finepruner_lmms.matrix.workloads import questions_in

START = Figure(60.0, "s", "importing, reading 13 GB of weights", "assumption")
IMPORTS = Figure(
    28.0, "s", "importing lmms-eval and indexing its tasks, which each launch of its own does",
    "26 to 30 s on two CPU cores, measured with a tiny model",
)  # fmt: skip
NODE = Figure(8, "GPUs", "of the machine that is assumed where this one has none", "assumption")
_LARGE = 1e9
"""Weights of a decoder from which on it is run on GPUs: of smaller ones nothing is known before a cell is finished."""


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
    spread: tuple[float, float] | None = None
    """The ends of the range in which the time lies, in parts of it; None where finished cells tell it."""
    one: float | None = None
    """Seconds on one GPU, where several are planned for."""

    @property
    def total(self) -> float:
        """Of all cells and of starting, in the chosen mode."""
        return self.modes[self.mode]


def estimate_study(
    matrix: Matrix,
    study: Study,
    states: Sequence[State],
    left: Sequence[Cell],
    store: Store,
    gpus: Callable[[], int] = count_gpus,
) -> Estimate | None:
    """How long the cells that are left take on this machine; None where nothing is known.

    Folders of `finepruner bench` are looked for beside that of `store`. Without GPUs here, a checkpoint that needs them
    is planned for `NODE`.
    """
    file, sizes = matrix.file, Sizes.of(matrix.shape)
    layers, tokens = study.num_layers, study.num_visual_tokens
    schedules = [tuple(row.pruner.schedule(layers, tokens)) for row in matrix.rows]
    whole = {task: questions_in(file.data, task) for task in study.tasks}
    own_results = [(cell, s.result) for cell, s in zip(study.cells, states, strict=True) if s.result is not None]
    finished = [Finished(_asked(cell, schedules, whole), result) for cell, result in own_results]
    earlier = [
        Finished(Asked(result.spec.task, visual, result.spec.limit, result.answered), result)
        for visual, result in earlier_results(matrix, store, study)
    ]
    known = [*finished, *(one for one in earlier if one.asked.task not in {other.asked.task for other in finished})]
    large = sizes.decoder_bytes / sizes.element_bytes >= _LARGE
    here = 0 if file.model.device == "cpu" else gpus()
    elsewhere = large and not here and file.model.device != "cpu"  # planned here, to be run on GPUs
    machine = None if elsewhere else measured_machine(store.root.parent, "cuda" if here else "cpu")
    if not known and machine is None and not here and not elsewhere:
        return None
    devices = int(NODE.value) if elsewhere and not known else here
    processes = num_processes(file.launch, devices)
    eager = not devices or file.model.execution == "eager"
    machine = machine or (H100 if devices else CPU)
    how = Launched(processes, file.launch.batch_size, machine, EAGER if eager else GRAPHS)
    asked = {cell.id: _asked(cell, schedules, whole) for cell in left}
    shared = cell_seconds(sizes, asked, known, how)
    # on a CPU processes share the cores, so that a cell of one process takes as long as one of all
    own = cell_seconds(sizes, asked, known, replace(how, processes=1)) if devices else shared
    start = START.value if large else 0.0
    apart = sum(shared.values()) + len(left) * (IMPORTS.value + start)
    together = start + sum(shared.values())
    packed = start + makespan(own.values(), processes) if devices else together
    modes = {"resident": together, "packed": packed, "isolated": apart}
    mode = choose_mode(file.launch, processes, len(left), modes)
    seconds = own if mode == "packed" else shared
    used = min(processes, devices)
    if known:
        basis = _by_cells(len(finished), len(known) - len(finished))
    else:
        rests_on = "docs/performance.md" if machine is H100 else machine.flops.source
        alone = "" if file.launch.fan_out in ("off", 1) or len(left) == 1 else "; each cell answered alone"
        most = f"; every image as the largest, {tokens:,} visual tokens" if _varies(matrix) else ""
        released = "; sizes as released, since config.json cannot be fetched" if matrix.released else ""
        basis = f"an estimate for {machine.name}, by {rests_on}{alone}{most}{released}"
    at_once = file.launch.fan_out not in ("off", 1)
    spread = None if known or not left else time_range(sizes, asked.values(), replace(how, processes=1), at_once)
    one = start + sum(own.values()) if used > 1 else None
    return Estimate(seconds, used, basis, modes, mode, processes, spread, one)


def _varies(matrix: Matrix) -> bool:
    """Whether images differ in their number of visual tokens."""
    return Geometry.of(matrix.shape).varies


def _asked(cell: Cell, schedules: Sequence[tuple[int, ...]], whole: Mapping[str, int | None]) -> Asked:
    return Asked(cell.task, schedules[cell.row], cell.limit, whole.get(cell.task))


def _by_cells(own: int, others: int) -> str:
    """What an estimate rests on."""
    parts = [f"the {own} finished cell{'s' * (own > 1)} of this study"] if own else []
    parts += [f"{others} finished cell{'s' * (others > 1)} of other limits or rows"] if others else []
    return f"by {' and '.join(parts)}"
