"""How the cells of a study are spread over the devices of a machine: `launch.mode`, and the places for workers."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Literal

from finepruner_lmms.matrix.gpus import count_gpus
from finepruner_lmms.matrix.launch import Slot
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.sections import LaunchSection, MatrixFile, ModelSection

Mode = Literal["resident", "packed", "isolated"]


def usable_gpus(model: ModelSection) -> int:
    """The GPUs of this machine, as far as a study is to use them."""
    return 0 if model.device.partition(":")[0] == "cpu" else count_gpus()


def num_processes(settings: LaunchSection, gpus: int) -> int:
    """How many processes `launch.processes` means here."""
    return max(1, gpus) if settings.processes == "auto" else settings.processes


def choose_mode(
    settings: LaunchSection, processes: int, cells: int, seconds: Mapping[str, float] | None = None
) -> Mode:
    """`launch.mode`, or for `auto` the faster one by `seconds`, which says how long the study takes in each mode.

    Without an estimate cells are packed where each process gets two at least. Only `resident` and `packed` are chosen:
    `isolated` loads the model for each cell.
    """
    if settings.mode != "auto":
        return settings.mode
    if processes == 1 or cells <= 1:
        return "resident"
    if seconds is not None and {"resident", "packed"} <= seconds.keys():
        return "packed" if seconds["packed"] < seconds["resident"] else "resident"
    # on a CPU processes share the cores, and questions shared between them end together
    return "packed" if count_gpus() and cells >= 2 * processes else "resident"


def mode_here(file: MatrixFile, modes: Mapping[str, float], processes: int, cells: int) -> Mode:
    """`choose_mode` on this machine, by an estimate that was made for so many `processes`, here or elsewhere."""
    here = num_processes(file.launch, usable_gpus(file.model))
    return choose_mode(file.launch, here, cells, modes if processes == here else None)


def places(file: MatrixFile, mode: Mode, gpus: int) -> list[Slot]:
    """The places for workers: one, or one per process where cells are packed."""
    processes = num_processes(file.launch, gpus)
    cores = len(os.sched_getaffinity(0))
    if mode != "packed":
        return [Slot(processes=processes, cpu=gpus == 0, cores=cores)]
    if gpus == 0:
        share = max(1, cores // processes)
        return [Slot(number, devices=None, cpu=True, cores=share) for number in range(processes)]
    visible = _visible(gpus)
    return [Slot(number, devices=visible[number % len(visible)]) for number in range(processes)]


def _visible(gpus: int) -> list[str]:
    """The names of the GPUs, as `CUDA_VISIBLE_DEVICES` has them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:gpus] if len(named) >= gpus else [str(number) for number in range(gpus)]


def together(file: MatrixFile, mode: Mode, cells: int, workers: int, deaths: int) -> int | None:
    """How many cells of a task are answered as one at most; None for no bound. Each worker and job gets its share."""
    if mode == "isolated":
        return 1
    most = file.launch.at_once(cells, deaths)
    jobs = file.launch.nodes or 1
    workers = (1 if mode == "resident" else workers) * jobs
    if workers == 1:
        return most
    share = max(1, -(-cells // workers))
    return share if most is None else min(most, share)


def in_order(cells: Sequence[Cell], seconds: Mapping[str, float], most: int | None) -> list[Cell]:
    """For packed workers: longest first, in groups that are answered together."""
    groups = [group for _, those in groupby(cells, key=lambda cell: cell.task) for group in _chunks(list(those), most)]
    groups.sort(key=lambda group: -sum(seconds.get(cell.id, 0.0) for cell in group))
    return [cell for group in groups for cell in group]


def _chunks(cells: list[Cell], most: int | None) -> list[list[Cell]]:
    size = len(cells) if most is None else most
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def makespan(seconds: Iterable[float], workers: int) -> float:
    """How long workers take that each take the longest that is left."""
    loads = [0.0] * workers
    for one in sorted(seconds, reverse=True):
        heapq.heappush(loads, heapq.heappop(loads) + one)
    return max(loads)
