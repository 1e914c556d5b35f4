"""What the files of a cell hold, typed. A file of another shape is damage, which is named and never a traceback."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from finepruner_lmms.errors import show
from finepruner_lmms.files import read_object
from finepruner_lmms.lmms.identity import Identity

R = TypeVar("R", bound=BaseModel)


class Damage(ValueError):
    """A file that does not hold what it should; the text names file, field and value."""


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("not a number")
    return value


Number = Annotated[float, BeforeValidator(_number)]
"""A finite number: neither a text, nor true, nor NaN."""


class Record(BaseModel):
    """What is fixed once it is made."""

    model_config = ConfigDict(frozen=True)


class Status(Record):
    """`status.json`: the attempt that is running or ran last."""

    state: str
    attempt: int
    host: str
    pid: int
    launch: str


class CellError(Record):
    """`error.json`: why the last attempt failed."""

    error: str
    message: str
    details: str = ""


class Submission(Record):
    """A file for a server, beside the result that names it."""

    file: str
    bytes: int
    sha256: str


class Verdict(Record):
    """Who scored the answers: the judge, its server's models and instructions, and how many answers it was asked."""

    name: str
    host: str | None = None
    models: list[str] = []
    asked: int = 0
    rubric: str | None = None


class Sample(TypedDict):
    """A line of `samples.jsonl` and `answers.jsonl`: one question, joined by `doc_id` and `image` with other cells'.

    Not checked: a file may have 200,000 of them, and that it is the one that was written is known by its size.
    """

    doc_id: int
    image: str
    target: Any
    answer: Any
    score: Any


class Scores(Record):
    """lmms-eval's metrics by name, the benchmark's own as a share of the maximum, and the standard error of that."""

    metrics: dict[str, float]
    percent: float
    standard_error: float | None


class Outcome(Record):
    """What an evaluation gave: its scores, or the file for the server that scores it, or neither before a judge has."""

    answered: int
    expected: int
    cost: dict[str, int | float] | None
    """Of this process's questions; those that an earlier attempt had answered are not among them."""
    scores: Scores | None = None
    submission: Path | None = None


class Asked(Record):
    """What of a result's `spec` others read."""

    task: str
    identity: Identity | None = None
    """None in results written by hand."""


class Result(Record):
    """`result.json`: what came of a cell. `percent` and its standard error are None for what only a server scores."""

    schema_version: int
    id: str
    spec: Asked
    answered: int
    expected: int
    seconds: Number
    metrics: dict[str, Number] = {}
    percent: Number | None = None
    standard_error: Number | None = None
    cost: dict[str, Number] | None = None
    submission: Submission | None = None
    judge: Verdict | None = None
    samples_bytes: int


def load(kind: type[R], file: Path) -> R | None:
    """The record in a file; None where there is no file. `Damage` if it holds something else."""
    if not file.exists():
        return None
    value = read_object(file)
    if value is None:
        raise Damage(f"{file.name} is not readable as JSON")
    return parse(kind, value, file.name)


def parse(kind: type[R], value: dict[str, Any], name: str) -> R:
    """A record from JSON; `Damage` naming the field, its value and what is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        if problem["type"] == "missing":
            raise Damage(f"{name}: {field} is missing") from None
        why = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        found = problem["input"]
        raise Damage(f"{name}: {field} is {show(found)}, {why if why.startswith('not') else f'not {why}'}") from None
