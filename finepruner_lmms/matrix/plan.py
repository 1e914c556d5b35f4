"""What is planned, typed: methods, cells, the study that they make up, and what a worker is told and tells.

These travel as they are; they become JSON where `matrix.json`, `plan.json` and `events.jsonl` are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.judge.settings import Judge
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.matrix.records import Record
from finepruner_lmms.matrix.sections import ModelSection


def row_label(method: str, budget: int | str | None, given: Mapping[str, Any]) -> str:
    """What a row is called, with the parameters that the matrix file gives."""
    shown = [] if budget is None else [str(budget)]
    return " ".join([method, *shown, *(f"{name}={value}" for name, value in given.items())])


class Method(Record):
    """A row of the leaderboard: a method at a budget.

    `parameters` are all of the method's, `given` those that the matrix file names.
    """

    method: str
    budget: int | str | None
    parameters: dict[str, Any]
    given: dict[str, Any]
    imported: str | None = None
    """The model whose results they are, of a row that was not run here; `method` is then its label."""

    @property
    def label(self) -> str:
        """For people: `finepruner 128 heads=16`, with the parameters that the matrix file gives."""
        return row_label(self.method, self.budget, self.given)


class Cell(Record):
    """One method on one task. `row` is the method's place among those of the study."""

    id: str
    """Of everything that can change the result: `identity.id`."""
    slug: str
    row: int
    task: str
    method: Method
    model: ModelSection
    limit: int | None
    data: str
    submission: bool
    """Whether a server scores it."""
    identity: Identity
    judged: bool = False
    """Whether a judge scores it, rather than its task alone."""
    judge: str | None = None
    """Whose scores make it done; None for any judge's."""
    definition: str = ""
    """The YAML file of a task that is none of the ten; "" for these."""
    protocol: Protocol = LLAVA
    """By whose rules its answers are scored."""

    @property
    def folder(self) -> str:
        """The name of its directory."""
        return f"{self.slug}-{self.id}"

    @property
    def label(self) -> str:
        """For people: `pope · fastv 128`."""
        return f"{self.task} · {self.method.label}"

    def spec(self) -> dict[str, Any]:
        """Its settings, as `result.json` has them."""
        # where and how it ran changed nothing
        how = {"device", "device_map", "execution", "image_cache", "image_cache_place", "image_chunk"}
        settings = {"model": self.model.model_dump(exclude=how), "limit": self.limit, "task": self.task}
        settings |= {"data": self.data} | ({"submission": True} if self.submission else {})
        settings |= {"protocol": self.protocol} if self.protocol != LLAVA else {}
        method = self.method.model_dump(exclude={"imported"})
        return settings | method | {"identity": self.identity.model_dump()}


class Study(Record):
    """`matrix.json`: the rows and cells of the latest `run`, and who judges."""

    name: str
    model: str
    num_layers: int
    num_visual_tokens: int
    tasks: tuple[str, ...]
    rows: tuple[Method, ...]
    cells: tuple[Cell, ...]
    judge: Judge | None = None
    images_differ: bool = False
    """In their number of visual tokens; `num_visual_tokens` is then the most that papers count of one."""


class PlannedCell(Cell):
    """A cell and its directory, and how many attempts at it were made before: the next is for who comes first."""

    path: Path
    attempts: int = 0


class Plan(Record):
    """`plan.json`: what one worker is to do."""

    launch: str
    """The name of the launch's directory."""
    model: ModelSection
    batch_size: int
    data: str
    limit: int | None
    monitor: bool
    record: int = 0
    """Of how many questions of a cell the traces are kept."""
    submission: bool
    protocol: Protocol = LLAVA
    tasks_dir: str | None = None
    """A folder with the user's own tasks."""
    fan_out: int | None
    """How many cells of a task are answered together at most; None for as many as memory allows."""
    mode: Literal["resident", "packed", "isolated"] = "resident"
    processes: int = 1
    """How many share the questions of a cell."""
    cells: tuple[PlannedCell, ...]


class Event(Record):
    """A line of `events.jsonl`: what a worker says to the run that started it.

    `start`, `done`, `failed` and `lost` (to another worker) name the `cell`; `progress` says how many of its questions
    are answered, and of how many cells `together`.
    """

    event: Literal["loading", "ready", "start", "progress", "done", "failed", "lost", "end"]
    cell: str = ""
    done: int = 0
    total: int = 0
    together: int = 1
    processes: int = 0
