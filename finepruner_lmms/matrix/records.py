"""What the files of a cell hold, typed. A file of another shape is damage, which is named and never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from finepruner_lmms.benchmarks.measure import Measured
from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.errors import first_line, show
from finepruner_lmms.files import parse_json, read_bytes
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.statistics.effects import NOISE

R = TypeVar("R", bound=BaseModel)


class Damage(ValueError):
    """A file that does not hold what it should; the text names file, field and value."""


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
        raise ValueError("not a number")
    return value


_LARGEST = 10**300
"""A Python integer may be larger than any float."""


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


class Recorded(Record):
    """The file of a cell's traces, and of how many questions it is (`matrix.traces`)."""

    file: str
    questions: int
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

    Not checked one by one: a file may have 200,000 of them, and that it is the one that was written is known by its
    sha256.
    """

    doc_id: int
    image: str
    target: Any
    answer: Any
    score: Any
    question: NotRequired[str]
    """What was asked; not in samples of older versions, nor in imported ones that do not carry it."""


class Selected(Record):
    """What of a line of `selections-rank<r>.jsonl` a report reads: which heads were chosen for a question."""

    task: str
    doc_id: int
    layer: int
    heads: list[Annotated[int, Field(ge=0, lt=1024)]] | None = None


class Fused(Selected):
    """The same of consensus selection."""

    qualities: dict[str, Number]
    branch: str
    complexity: Number
    n_heads: int
    share_diversity: Number


class Measure(Record):
    """How a task that is none of the ten is measured, by lmms-eval's own metric (`benchmarks.measure.Measured`)."""

    metric: str
    """Its key in `metrics`."""
    higher_is_better: bool
    scale: Number | None = None
    """What a perfect model gets; None where that is not known, or where less is better."""
    per_sample: bool
    """Whether each question has a score, of which the metric is the mean: only then there is a standard error."""
    directions: dict[str, bool] = {}
    """Of each metric of the task, whether more is better."""

    @property
    def measured(self) -> Measured:
        """As the benchmarks take it."""
        return Measured(self.metric, self.higher_is_better, self.scale, self.per_sample)


class Scores(Record):
    """lmms-eval's metrics by name, the benchmark's own as a share of the maximum, and the standard error of that."""

    metrics: dict[str, float]
    percent: float | None
    """None where no maximum is known (`measure`); the error is then that of the metric itself."""
    standard_error: float | None
    measure: Measure | None = None


class Conditions(Record):
    """What a speed was measured under; speeds under others do not compare."""

    device: str
    dtype: str
    processes: int
    batch_size: int
    execution: str
    """What ran: `eager`, `graphs`, or both."""
    together: int = 1
    """How many cells were answered as one (`launch.fan_out`), so that the time is that of all of them."""
    asked_batch_size: int | None = None
    """What the batch size was to be, where memory ran out with it."""

    def __str__(self) -> str:
        processes = f"{self.processes} x " if self.processes > 1 else ""
        together = f", {self.together} cells at once" if self.together > 1 else ""
        halved = "" if self.asked_batch_size is None else f" (memory ran out with {self.asked_batch_size})"
        return f"{processes}{self.device}, {self.dtype}, batch {self.batch_size}{halved}, {self.execution}{together}"


class Speed(Record):
    """How fast a cell was answered, measured over `questions`, each once, in so many `attempts`.

    Times are in seconds. `seconds` is the whole time until the last answer, with reading and encoding images, but
    without what was lost where an attempt was cut off. A first token is timed from the call of `generate` on, for the
    whole batch; `seconds_per_token` is that of a decode step, which gives a token to each row. `waiting` is the share
    of time in which the model waited for its input. What was not measured is None.
    """

    questions: int
    batches: int
    attempts: int = 1
    seconds: Number
    questions_per_second: Number
    model_questions_per_second: Number
    """The same if the model never paused."""
    first_token_p50: Number | None = None
    first_token_p95: Number | None = None
    seconds_per_token: Number | None = None
    peak_bytes: int | None = None
    """The most that PyTorch held on one device, weights, encoded images and captured graphs included."""
    waiting: Number | None = None
    image_hits: Number | None = None
    """The share of questions with an image that needed none to be encoded."""
    conditions: Conditions


class Outcome(Record):
    """What an evaluation gave: its scores, or the file for the server that scores it, or neither before a judge has."""

    answered: int
    expected: int
    cost: dict[str, int | float] | None
    """Of all questions, each once, whoever answered it in which attempt."""
    speed: Speed | None = None
    scores: Scores | None = None
    submission: Path | None = None
    traces: dict[int, dict[str, Any]] = {}
    """What was recorded of its questions, by number (`lmms.traced`)."""


class Provenance(Record):
    """Where a result comes from; no part of what it is. What is not known is absent. Times are in seconds."""

    versions: dict[str, str] = {}
    git_revision: str | None = None
    """Of this package's checkout."""
    python: str | None = None
    system: str | None = None
    host: str | None = None
    device: str | None = None
    devices: int | None = None
    """How many processes computed, each on a device of its own."""
    driver: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    seeds: dict[str, int] = {}
    command: str | None = None
    inputs: dict[str, str] = {}
    """Hashes, or name and commit, of what was read: checkpoint, data, task, a file of heads."""
    started: str | None = None
    finished: str | None = None
    wall_seconds: Number | None = None
    device_seconds: Number | None = None
    """How long the model computed, of the slowest process."""
    peak_bytes: int | None = None
    joules: Number | None = None
    """What the GPUs took from start to end, idle power and what else ran on them included."""
    together: int | None = None
    """How many cells were answered as one: time, memory and energy are of all of them. None where nothing was asked,
    because another of them had answered it."""


class Asked(Record):
    """What of a result's `spec` others read."""

    task: str
    identity: Identity | None = None
    """None in results written by hand."""
    protocol: Protocol = LLAVA
    """By whose rules its answers were scored."""


class Answered(Record):
    """`answered.json`, and what every `result.json` has, too: whose the lines beside it are, and which these are."""

    schema_version: int
    id: str
    spec: Asked
    answered: int
    expected: int
    samples_bytes: int
    samples_sha256: str = ""
    checksum: str | None = None
    """Of all else in this file; None in files of schema 2, which has none."""


class Result(Answered):
    """`result.json`: what came of a cell. `percent` and its standard error are None for what only a server scores."""

    seconds: Number | None = None
    """None in results that were imported."""
    metrics: dict[str, Number] = {}
    percent: Number | None = None
    standard_error: Number | None = None
    cost: dict[str, Number] | None = None
    speed: Speed | None = None
    """None in results of versions that did not measure; these measured only what no earlier attempt had answered."""
    submission: Submission | None = None
    judge: Verdict | None = None
    measure: Measure | None = None
    """How it was measured, of a task that is none of the ten."""
    provenance: Provenance | None = None
    """None in results of versions that did not write it down."""
    traces: Recorded | None = None
    """None where no question's visual tokens were recorded."""

    @property
    def error(self) -> float | None:
        """The standard error of `percent`; None where nothing was measured, for which older results have 0."""
        known = self.standard_error is not None and self.standard_error > NOISE
        return self.standard_error if known else None


_MOST = 1 << 26
"""Bytes: what is larger is no record."""


def load(kind: type[R], file: Path) -> R | None:
    """The record in a file; None where there is no file. `Damage` if it holds something else."""
    content = read(file)
    return None if content is None else parse(kind, load_json(content, file.name), file.name)


def read(file: Path) -> bytes | None:
    """What a record's file holds; None where there is none. `Damage` if it cannot be read, or is no file."""
    try:
        return read_bytes(file, _MOST)
    except (FileNotFoundError, NotADirectoryError):
        if file.is_symlink():
            raise Damage(f"{file.name} is a link to nothing") from None
        return None
    except OSError as error:
        raise Damage(f"{file.name} cannot be read: {error.strerror}") from None


def load_json(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object that a record's file holds; `Damage` if it holds something else."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise Damage(f"{name} is not readable as JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise Damage(f"{name} is not readable as JSON: it holds no object")
    return value


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
