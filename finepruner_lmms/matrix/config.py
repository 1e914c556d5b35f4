"""Reading a matrix file. Every mistake is reported as `file:line:column: field: what is wrong`, all of them at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.errors import nearest
from finepruner_lmms.judge.settings import OPTIONAL, Judge, JudgeServer, explain

Place = tuple[str | int, ...]


class ConfigError(ValueError):
    """The matrix file is wrong; the text has one line a mistake."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which model, and how it is run: the `model_args` that are not the method's."""

    pretrained: str = "llava-hf/llava-1.5-7b-hf"
    conv: str = "vicuna_v1"
    image_aspect_ratio: str = "pad"
    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "sdpa"
    max_new_tokens: PositiveInt | None = None


class LaunchSection(_Section):
    """How the worker is started. `processes: auto` is one a GPU, or one without GPUs."""

    processes: PositiveInt | Literal["auto"] = "auto"
    batch_size: PositiveInt = 1
    timeout_minutes: float = Field(default=30, gt=0)
    """A worker that reports no progress for so long is stopped."""


class MatrixFile(_Section):
    """The whole file, before its methods are multiplied out."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: ModelSection = ModelSection()
    data: str = "hub"
    tasks: list[str] = Field(min_length=1)
    methods: list[str | dict[str, Any]] = Field(min_length=1)
    limit: PositiveInt | None = None
    monitor: bool = False
    submission: bool = False
    """Tasks that only a server scores answer their test split and write its file."""
    judge: Judge | None = None
    launch: LaunchSection = LaunchSection()


@dataclass(frozen=True)
class Row:
    """One method with its parameters as they stand in the file; `place` is where."""

    method: str
    given: tuple[tuple[str, Any], ...]
    place: Place

    @property
    def arguments(self) -> dict[str, Any]:
        """What `build_pruner` gets."""
        return dict(self.given)


@dataclass(frozen=True)
class Matrix:
    """A checked matrix file: its settings, its rows in order, and the model's depth and N."""

    file: MatrixFile
    rows: tuple[Row, ...]
    num_layers: int
    num_visual_tokens: int


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is a mistake."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: dict[Hashable, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key}: given twice (first in line {seen[key]})", key_node.start_mark
            )
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


class _Errors:
    """Collects mistakes with their places in the file."""

    def __init__(self, path: Path, root: yaml.Node) -> None:
        self.path, self.root, self.lines = path, root, list[tuple[int, int, str]]()

    def add(self, place: Place, message: str) -> None:
        mark = _mark(self.root, place)
        self.lines.append((mark.line + 1, mark.column + 1, message))

    def raise_any(self) -> None:
        if self.lines:
            raise ConfigError(
                "\n".join(f"{self.path}:{line}:{column}: {text}" for line, column, text in sorted(set(self.lines)))
            )


def load_matrix(path: Path, check_data: bool = True) -> Matrix:
    """Read and check a matrix file; `ConfigError` listing every mistake found.

    `check_data`: whether data that is not there is a mistake of the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        root, data = yaml.compose(text, _Loader), yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        raise ConfigError(f"{path}:{where}: {error.problem or error.context}") from error
    if root is None or not isinstance(data, dict):
        raise ConfigError(f"{path}:1:1: expected a mapping with name, tasks and methods")
    errors = _Errors(path, root)
    file = _check_shape(data, errors)
    _check_tasks(file, errors)
    if check_data:
        _check_data(file, errors)
    _check_judge(file, errors)
    _check_model(file, errors)
    rows = _check_rows(file, errors)
    errors.raise_any()
    num_layers, num_visual_tokens = _check_reachable(file, rows, errors)
    errors.raise_any()
    return Matrix(file, tuple(rows), num_layers, num_visual_tokens)


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_shape(data: dict[Any, Any], errors: _Errors) -> MatrixFile:
    try:
        return MatrixFile.model_validate(data)
    except ValidationError as error:
        problems: dict[Place, list[Any]] = {}
        for problem in error.errors():
            problems.setdefault(_without_branches(problem["loc"]), []).append(problem)
        for place, found in problems.items():
            errors.add(place, f"{_dotted(place)}: {_explain(found, place)}")
        errors.raise_any()
        raise


def _without_branches(place: Place) -> Place:
    """Pydantic names the branch of a union inside the place; the file has no such level."""
    branches = ("str", "int", "constrained-int", "word", "server")
    return tuple(
        part for part in place if not (part in branches or str(part).startswith(("literal[", "dict[", "function-")))
    )


def _explain(problems: list[Any], place: Place) -> str:
    """What is wrong at one place; several problems are the alternatives of a union."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        section: Any = {"model": ModelSection, "launch": LaunchSection, "judge": JudgeServer}.get(
            str(place[0]), MatrixFile
        )
        known = list((section if len(place) > 1 else MatrixFile).model_fields)
        return f"unknown field{nearest(str(place[-1]), known)}; known: {', '.join(known)}"
    if len(problems) == 1:
        return explain(first)
    wanted = " or ".join(problem["msg"].removeprefix("Input should be ") for problem in problems)
    return f"got {first['input']!r}; expected {wanted[0].lower() + wanted[1:]}"


def _check_tasks(file: MatrixFile, errors: _Errors) -> None:
    for number, task in enumerate(file.tasks):
        place = ("tasks", number)
        if task not in BENCHMARKS:
            hint = nearest(task, list(BENCHMARKS))
            errors.add(place, f"tasks.{number}: unknown task {task!r}{hint}; known: {', '.join(BENCHMARKS)}")
        elif task in file.tasks[:number]:
            errors.add(place, f"tasks.{number}: {task!r} is given twice")
    if file.limit is not None:
        if "mme" in file.tasks and file.limit < 2:
            errors.add(("limit",), f"limit: got {file.limit}; mme asks two questions per image, so give at least 2")
        for task in {"mmbench", "mmbench_cn"} & set(file.tasks):
            if file.limit < 4:
                why = f"{task} asks every question in up to four orders, so give at least 4"
                errors.add(("limit",), f"limit: got {file.limit}; {why}")
    if file.data not in ("hub", "demo", "demo-tuning") and not Path(file.data).is_dir():
        errors.add(("data",), f"data: {file.data!r} is neither 'hub', 'demo' nor an existing folder")
    if file.submission:
        _check_submission(file, errors)


def _check_submission(file: MatrixFile, errors: _Errors) -> None:
    from finepruner_lmms.benchmarks.submission import SERVED, TEST

    served = [task for task in file.tasks if task in SERVED]
    if not served:
        errors.add(("submission",), f"submission: none of the tasks has a server; these have: {', '.join(SERVED)}")
    if file.limit is not None:
        errors.add(("limit",), f"limit: got {file.limit}; a submission needs every question, so leave it out")
    for task in served if file.data not in ("hub", "demo", "demo-tuning") else []:
        if not (Path(file.data) / task / TEST).is_dir():
            what = f"{task}/{TEST}, whose questions a submission answers"
            errors.add(("data",), f"data: {file.data!r} has no folder {what}")


def _check_data(file: MatrixFile, errors: _Errors) -> None:
    from finepruner_lmms.benchmarks.submission import SERVED
    from finepruner_lmms.data.ready import missing_data

    if file.data == "hub" or not (file.data.startswith("demo") or Path(file.data).is_dir()):
        return  # the hub is asked when something is run
    known = [task for task in file.tasks if task in BENCHMARKS and not (file.submission and task in SERVED)]
    for problem in missing_data(file.data, known):
        errors.add(("data",), str(problem))


def _check_judge(file: MatrixFile, errors: _Errors) -> None:
    judged = [task for task in file.tasks if task in BENCHMARKS and BENCHMARKS[task].judged]
    if judged and file.judge is None:
        number = file.tasks.index(judged[0])
        errors.add(
            ("tasks", number),
            f"tasks.{number}: {judged[0]!r} needs a judge; add `judge: {{url: ..., model: ...}}` (an OpenAI-compatible "
            "server), `judge: later` (answers now, `judge OUTPUT` afterwards), or `judge: exact` (string match, not "
            "comparable with published scores)",
        )
    also = file.judge.also if isinstance(file.judge, JudgeServer) else frozenset()
    if also and not also & set(file.tasks):
        known = " or ".join(sorted(also))
        errors.add(("judge", "mmbench"), f"judge.mmbench: got true, but none of the tasks is {known}; leave it out")
    elif also and file.submission:
        errors.add(
            ("judge", "mmbench"),
            "judge.mmbench: got true, but with `submission: true` a server scores MMBench; leave one of them out",
        )
    elif file.judge is not None and not judged and not also:
        could = OPTIONAL & set(file.tasks) and ", or give a server with `mmbench: true`, which judges MMBench"
        errors.add(("judge",), f"judge: none of the tasks is judged; leave it out{could or ''}")
    if isinstance(file.judge, JudgeServer):
        try:
            key = file.judge.key()
        except ValueError as error:
            errors.add(("judge", "key_env"), f"judge.key_env: {error}")
            return
        if key is None and "key_env" in file.judge.model_fields_set:
            errors.add(
                ("judge", "key_env"), f"judge.key_env: {file.judge.key_env} is not set; export it, or leave key_env out"
            )


def _check_model(file: MatrixFile, errors: _Errors) -> None:
    from finepruner_lmms.lmms.model_args import ModelArguments

    try:
        ModelArguments.parse(file.model.model_dump(exclude_none=True))
    except ValueError as error:
        field = _field(error)
        errors.add(("model", field), f"model.{error}")


def _check_rows(file: MatrixFile, errors: _Errors) -> list[Row]:
    from finepruner_lmms.pruners import build_pruner

    rows: list[Row] = []
    seen: dict[Any, Place] = {}
    for row in _multiply(file, errors):
        try:
            pruner = build_pruner(row.method, **row.arguments)
        except ValueError as error:
            errors.add(_place_of(row, _field(error)), f"{_dotted(row.place[:2])}.{error}")
            continue
        if pruner in seen:
            first = _dotted(seen[pruner][:2])
            errors.add(row.place, f"{_dotted(row.place[:2])}: the same row as one of {first}: {pruner}")
        seen.setdefault(pruner, row.place)
        rows.append(row)
    return rows


def _check_reachable(file: MatrixFile, rows: list[Row], errors: _Errors) -> tuple[int, int]:
    from finepruner_lmms.checkpoints.load import check_pruner, read_config
    from finepruner_lmms.engine.geometry import Geometry
    from finepruner_lmms.pruners import build_pruner

    try:
        config = read_config(file.model.pretrained)
    except ValueError as error:
        errors.add(("model", "pretrained"), f"model.{error}")
        return 0, 0
    for row in rows:
        try:
            check_pruner(build_pruner(row.method, **row.arguments), config)
        except ValueError as error:
            errors.add(_place_of(row, _field(error)), f"{_dotted(row.place[:2])}.{error}")
    geometry = Geometry.of(config)
    return geometry.num_layers, geometry.num_visual_tokens


def _multiply(file: MatrixFile, errors: _Errors) -> Iterator[Row]:
    """Lists multiply within an entry, the first-named varying slowest."""
    for number, entry in enumerate(file.methods):
        place: Place = ("methods", number)
        if isinstance(entry, str):
            yield Row(entry, (), place)
            continue
        if not isinstance(entry.get("method"), str):
            errors.add(place, f"{_dotted(place)}.method: got {entry.get('method')!r}; expected the name of one method")
            continue
        axes = [(k, v if isinstance(v, list) else [v]) for k, v in entry.items() if k != "method"]
        for name, choices in axes:
            if not choices:
                errors.add((*place, name), f"{_dotted(place)}.{name}: the list is empty, so no row would be left")
        for values in itertools.product(*(values for _, values in axes)):
            given = tuple((name, value) for (name, _), value in zip(axes, values, strict=True))
            try:
                hash(given)
            except TypeError:
                errors.add(
                    place, f"{_dotted(place)}: got {dict(given)!r}; parameters are single values or lists of them"
                )
                continue
            yield Row(entry["method"], given, place)


# -- places -----------------------------------------------------------------------------------------------------------


def _field(error: ValueError) -> str:
    return re.split(r"[:\s]", str(error), maxsplit=1)[0]


def _place_of(row: Row, field: str) -> Place:
    """Where a row's parameter stands: down to the item of a list, unless the method does not read it at all."""
    from finepruner_lmms.pruners import parameter_names

    try:
        known = parameter_names(row.method)
    except ValueError:
        known = []
    where = (*row.place, field)
    return (*where, _Value(row.arguments[field])) if field in row.arguments and field in known else where


class _Value(str):
    """An item of a list, found by its value."""

    def __new__(cls, value: Any) -> _Value:
        return super().__new__(cls, value)


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place if not isinstance(part, _Value))


def _mark(node: yaml.Node, place: Place) -> yaml.Mark:
    """Where `place` stands in the file, or as much of it as exists."""
    found = node.start_mark
    for part in place:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    node, found = value, key.start_mark
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, _Value):
            found = next((item.start_mark for item in node.value if item.value == str(part)), found)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            found = node.start_mark
        else:
            break
    return found
