"""What a matrix file may say: its sections, their fields and types, and their mistakes in words."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.errors import FieldError, explain_problem, nearest, show
from finepruner_lmms.files import expand_home
from finepruner_lmms.judge.settings import Judge, JudgeServer
from finepruner_lmms.lmms.model_args import MOST_BATCH
from finepruner_lmms.matrix.cluster_fields import LOCAL, Gpus, Name, Nodes, Options, Time
from finepruner_lmms.matrix.yaml_places import Document, Place, dotted

MOST_ROWS = 10_000
"""Of one file: more are taken for a mistake, rather than multiplied out."""
MOST_PROCESSES = 1_024
MOST_MINUTES = 60 * 24 * 31
"""A month."""
MOST_QUESTIONS = 1_000_000_000
MOST_RECORDED = 10_000
"""Of a cell: at some 2 KB each."""
HomePath = Annotated[str, AfterValidator(expand_home)]
"""A name or a path, in which `~` is the home directory."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which model, and how it is run: the `model_args` that are not the method's."""

    pretrained: HomePath = "llava-hf/llava-1.5-7b-hf"
    conv: str = "auto"
    image_aspect_ratio: str = "auto"
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    max_tiles: PositiveInt | None = None
    num_frames: PositiveInt | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    attn_implementation: str = "sdpa"
    execution: str = "auto"
    max_new_tokens: PositiveInt | None = None
    image_cache: NonNegativeInt = 1024
    image_cache_place: str = "device"
    image_cache_dtype: str = "auto"
    image_chunk: PositiveInt | None = None


def _switch(value: Any) -> Any:
    """YAML reads `off` and `on` as false and true."""
    return {False: "off", True: "auto"}[value] if isinstance(value, bool) else value


Minutes = Annotated[float, Field(gt=0, le=MOST_MINUTES)]


class Timeouts(_Section):
    """Minutes in which a worker may stand still in a phase; one that moves, however slowly, is never stopped."""

    start: Minutes = 30
    download: Minutes = 30
    load: Minutes = 30
    index: Minutes = 30
    answer: Minutes = 30
    score: Minutes = 30


Mode = Literal["auto", "resident", "packed", "isolated"]


class LaunchSection(_Section):
    """How workers are started. `processes: auto` is one per GPU, or one without GPUs.

    `mode`: `resident` is one `accelerate launch`, whose processes share the questions of each cell; `packed` is one
    process per GPU, each with cells of its own; `isolated` is an `accelerate launch -m lmms_eval` for each cell.
    """

    mode: Mode = "auto"
    processes: Annotated[int, Field(ge=1, le=MOST_PROCESSES)] | Literal["auto"] = "auto"
    batch_size: int = Field(default=1, ge=1, le=MOST_BATCH)
    timeout_minutes: Minutes | Timeouts = 30.0
    """One number for all phases, or one for each."""
    fan_out: Annotated[Annotated[int, Field(ge=1, le=MOST_ROWS)] | Literal["auto", "off"], BeforeValidator(_switch)] = (
        "auto"
    )
    """How many cells of a task are answered together at most: `auto` is as many as memory allows."""

    executor: Name = LOCAL
    """Who does the work: `local` is this machine; others submit jobs (docs/cluster.md), with what follows."""
    nodes: Nodes | None = None
    """How many jobs, of one node each, work at once at most; 1 where nothing is said."""
    gpus_per_node: Gpus | None = None
    partition: Name | None = None
    account: Name | None = None
    time: Time | None = None
    """How long a job may run."""
    extra: Options = Field(default_factory=dict)
    """More options of the scheduler, by their long names."""
    setup: tuple[str, ...] = ()
    """Shell commands before a job's own."""

    @property
    def timeouts(self) -> Timeouts:
        """`timeout_minutes` by phase."""
        given = self.timeout_minutes
        return given if isinstance(given, Timeouts) else Timeouts(**dict.fromkeys(Timeouts.model_fields, given))

    def at_once(self, cells: int, deaths: int) -> int | None:
        """`fan_out` as a number, None for no bound; half of it, of so many cells, after each death of a worker."""
        most = {"auto": None, "off": 1}[self.fan_out] if isinstance(self.fan_out, str) else self.fan_out
        return most if not deaths else max(1, min(cells, most or cells) >> deaths)


class RecordSection(_Section):
    """What is kept of a cell besides its answers: which visual tokens stayed, and what guided the choice."""

    questions: int = Field(default=200, ge=0, le=MOST_RECORDED)
    """Of how many of its questions, the same for every method; 0 for none."""


class MatrixFile(_Section):
    """The whole file, before its methods are multiplied out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    model: ModelSection = ModelSection()
    data: HomePath = "hub"
    tasks: list[str] = Field(min_length=1, max_length=100)
    tasks_dir: HomePath | None = None
    """A folder with lmms-eval tasks of one's own."""
    plugins: tuple[HomePath, ...] = ()
    """Python files that register methods, head strategies or queries: relative to the matrix file's folder."""
    methods: list[str | dict[str, Any]] = Field(min_length=1, max_length=MOST_ROWS)
    limit: int | None = Field(default=None, ge=1, le=MOST_QUESTIONS)
    monitor: bool = False
    record: RecordSection = RecordSection()
    submission: bool = False
    """Tasks that only a server scores answer their test split and write its file."""
    protocol: Protocol = LLAVA
    """By whose rules answers are scored: LLaVA's, or those of lmms-eval's own tasks."""
    judge: Judge | None = None
    launch: LaunchSection = LaunchSection()

    @property
    def benchmarks(self) -> list[str]:
        """Those of the tasks that are of the ten: `data` has their questions."""
        return [task for task in self.tasks if task in BENCHMARKS]


_SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "launch": LaunchSection,
    "judge": JudgeServer,
    "record": RecordSection,
}
_INNER: dict[str, type[BaseModel]] = {"timeout_minutes": Timeouts}


def check_shape(document: Document) -> MatrixFile:
    """The file's fields by name, each of its type; `ConfigError` with every field that is not.

    Nothing is taken for what it is not: `yes` is no number, and `8` in quotes neither.
    """
    try:
        # as JSON, in which a list is a tuple, too
        found = MatrixFile.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        problems: dict[Place, list[Any]] = {}
        for problem in error.errors():
            problems.setdefault(_place(document.data, problem), []).append(problem)
        for place, of_it in problems.items():
            document.report(FieldError(dotted(place), _in_words(of_it, place, document)), place)
        document.raise_any()
        raise
    document.raise_any()  # single words that could not be read
    return found


def _place(data: Any, problem: Any) -> Place:
    """Where a problem stands in the file. Pydantic names the branch of a union too; the file has no such level."""
    place: list[str | int] = []
    for part in problem["loc"]:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            place.append(part)
    return (*place, problem["loc"][-1]) if problem["type"] == "missing" else tuple(place)


def _in_words(problems: list[Any], place: Place, document: Document) -> str:
    """What is wrong at one place; several problems are the alternatives of a union."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        section = _SECTIONS[str(place[0])] if len(place) > 1 else MatrixFile
        section = _INNER.get(str(place[-2]), section) if len(place) > 2 else section
        known = list(section.model_fields)
        return f"unknown field{nearest(place[-1], known)}; known: {', '.join(known)}"
    if first["type"] in ("value_error", "missing"):
        return explain_problem(first)
    # what was typed, where YAML makes something else of it
    typed, value = document.written(place), first["input"]
    got = "nothing" if value is None else show(value)
    if isinstance(value, bool) and typed is not None:
        got = typed if typed == str(value).lower() else f"{typed}, which YAML reads as {str(value).lower()}"
    return f"got {got}; expected {' or '.join(dict.fromkeys(map(_wanted, problems)))}"


def _wanted(problem: Any) -> str:
    """What pydantic expected, in words."""
    limits = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        return str(limits["expected"])
    if problem["type"] in _BOUNDS:
        return _BOUNDS[problem["type"]].format(**{name: _number(limit) for name, limit in limits.items()})
    return _TYPES.get(problem["type"], str(problem["msg"]).removeprefix("Input should be "))


def _number(limit: Any) -> str:
    if isinstance(limit, int):
        return f"{limit:,}"
    return f"{limit:,g}" if isinstance(limit, float) else str(limit)


_TYPES = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "string_type": "a text (in quotes if YAML takes it for something else)",
    "list_type": "a list, such as [a, b]", "dict_type": "a mapping, such as {method: fastv, budget: 64}",
    "model_type": "a mapping, such as {field: value}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', beginning with a letter or a digit",
}  # fmt: skip
_BOUNDS = {
    "greater_than": "more than {gt}", "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}", "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them", "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} characters", "string_too_long": "at most {max_length} characters",
}  # fmt: skip
