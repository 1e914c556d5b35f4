"""What a matrix file may say: its sections, their fields and types, and their mistakes in words."""

from __future__ import annotations

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

from finepruner_lmms.errors import FieldError, explain_problem, nearest, show
from finepruner_lmms.files import expand_home
from finepruner_lmms.judge.settings import Judge, JudgeServer
from finepruner_lmms.matrix.cluster_fields import LOCAL, Gpus, Name, Nodes, Options, Time
from finepruner_lmms.matrix.yaml_places import Document, Place

HomePath = Annotated[str, AfterValidator(expand_home)]
"""A name or a path, in which `~` is the home directory."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which model, and how it is run: the `model_args` that are not the method's."""

    pretrained: HomePath = "llava-hf/llava-1.5-7b-hf"
    conv: str = "vicuna_v1"
    image_aspect_ratio: str = "pad"
    dtype: str = "auto"
    device: str = "auto"
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


class LaunchSection(_Section):
    """How the worker is started. `processes: auto` is one per GPU, or one without GPUs."""

    processes: PositiveInt | Literal["auto"] = "auto"
    batch_size: PositiveInt = 1
    timeout_minutes: float = Field(default=30, gt=0)
    """A worker that reports no progress for so long is stopped."""
    fan_out: Annotated[PositiveInt | Literal["auto", "off"], BeforeValidator(_switch)] = "auto"
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

    def at_once(self, cells: int, deaths: int) -> int | None:
        """`fan_out` as a number, None for no bound; half of it, of so many cells, after each death of a worker."""
        most = {"auto": None, "off": 1}[self.fan_out] if isinstance(self.fan_out, str) else self.fan_out
        return most if not deaths else max(1, min(cells, most or cells) >> deaths)


class MatrixFile(_Section):
    """The whole file, before its methods are multiplied out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    model: ModelSection = ModelSection()
    data: HomePath = "hub"
    tasks: list[str] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    limit: PositiveInt | None = None
    monitor: bool = False
    submission: bool = False
    """Tasks that only a server scores answer their test split and write its file."""
    judge: Judge | None = None
    launch: LaunchSection = LaunchSection()


_SECTIONS: dict[str, type[BaseModel]] = {"model": ModelSection, "launch": LaunchSection, "judge": JudgeServer}


def check_shape(document: Document) -> MatrixFile:
    """The file's fields by name, each of its type; `ConfigError` with every field that is not."""
    try:
        return MatrixFile.model_validate(document.data)
    except ValidationError as error:
        problems: dict[Place, list[Any]] = {}
        for problem in error.errors():
            problems.setdefault(_place(document.data, problem), []).append(problem)
        for place, found in problems.items():
            document.report(FieldError(".".join(map(str, place)), _in_words(found, place)), place)
        document.raise_any()
        raise


def _place(data: Any, problem: Any) -> Place:
    """Where a problem stands in the file. Pydantic names the branch of a union too; the file has no such level."""
    place: list[str | int] = []
    for part in problem["loc"]:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            place.append(part)
    return (*place, problem["loc"][-1]) if problem["type"] == "missing" else tuple(place)


def _in_words(problems: list[Any], place: Place) -> str:
    """What is wrong at one place; several problems are the alternatives of a union."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        section = _SECTIONS[str(place[0])] if len(place) > 1 else MatrixFile
        known = list(section.model_fields)
        return f"unknown field{nearest(place[-1], known)}; known: {', '.join(known)}"
    if len(problems) == 1:
        return explain_problem(first)
    wanted = " or ".join(problem["msg"].removeprefix("Input should be ") for problem in problems)
    return f"got {show(first['input'])}; expected {wanted[0].lower() + wanted[1:]}"
