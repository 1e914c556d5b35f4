"""Which code of this package can change the result of a cell, as fingerprints.

What every cell runs is followed through imports from the model and from `matrix.evaluate`; it ends at methods, at
tasks, and at what is silent. A method's code is its class and what that imports besides; a task's its YAML file, the
modules of its functions, and what makes scores of the answers. See `sources` for what following imports means.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.submission import task_lines
from finepruner_lmms.data.lmms_tasks import definition_files
from finepruner_lmms.data.task_folders import overrides_dir
from finepruner_lmms.files import content_hash
from finepruner_lmms.sources import Sources, foreign_code, in_package, short_hash

if TYPE_CHECKING:
    from finepruner_lmms.pruners import Corrector, Pruner

SILENT = {
    "claims": "says who works on what",
    "errors": "words errors",
    "files": "writes and locks files",
    "lazy": "loads libraries, whose versions count by themselves",
    "output": "shows text",
    "sources": "reads this code",
    "statistics": "says how sure a score is",
    "tether": "ends a process with its parent",
    "judge": "scores answers that are there",
    "data": "fetches data, whose content counts by itself",
    "matrix": "plans, launches and stores",
    "lmms.code_identity": "names answers",
    "lmms.heartbeat": "says that a process lives",
    "lmms.identity": "names answers",
    "lmms.identity_record": "names answers",
    "lmms.response_cache": "stores answers",
    "lmms.journal": "stores answers",
    "lmms.sealed_lines": "stores answers",
    "lmms.plain_run": "stores answers",
    "lmms.batch_sizes": "says how many questions share a forward, which changes no answer",
    "lmms.meter": "measures time and memory",
    "lmms.monitor": "writes down what was selected",
    "plugins": "finds plug-ins, which count by themselves",
    "lmms.recorder": "writes down what was selected",
    "lmms.traced": "writes down what was selected",
}
"""Code that runs in a cell and cannot change its answers, and why."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "PIL", "numpy", "lmms_eval")
"""The packages whose versions count for every cell, as they are imported."""
_ROOTS = ("lmms.model", "matrix.evaluate")
Stop = Callable[[str, str], bool]


@functools.cache
def engine_code(sources: Sources) -> dict[str, str]:
    """A fingerprint of what every cell runs, by room."""
    rooms: dict[str, list[str]] = {}
    for module in engine_modules(sources):
        rooms.setdefault(_room(module), []).append(module)
    return {room: sources.fingerprint(rooms[room]) for room in sorted(rooms)}


@functools.cache
def engine_modules(sources: Sources) -> frozenset[str]:
    """The modules that every cell runs."""

    def stop(by: str, needed: str) -> bool:
        method = _room(needed) == "pruners" and any(
            sources.decorates(needed, decorator) for decorator in ("register", "register_corrector")
        )
        # which heads a method chooses by is its own business; the model only shows them
        shown = _room(needed) == "heads" and _room(by) == "lmms"
        return method or shown or _room(needed) == "benchmarks"

    return _follow(sources, (f"{sources.name}.{root}" for root in _ROOTS), stop)


def method_code(pruner: Pruner, sources: Sources) -> dict[str, str]:
    """The code that a method needs besides, by method: of a composition, that of its methods and correctors."""
    return {piece.name: _code(type(piece), _asked(piece), sources) for piece in _pieces(pruner)}


def _pieces(pruner: Pruner | Corrector) -> list[Pruner | Corrector]:
    """The methods and correctors of a composition; a method is its own only one."""
    from finepruner_lmms.pruners import Corrector, Pruner

    values = [getattr(pruner, field.name) for field in fields(pruner)]
    inner = [value for value in values if isinstance(value, (Pruner, Corrector))]
    return [piece for value in inner for piece in _pieces(value)] if inner else [pruner]


def _asked(pruner: Pruner | Corrector) -> tuple[str | None, str | None]:
    """The names of a method's head strategy and query, where it has such parameters."""
    return getattr(pruner, "head_strategy", None), getattr(pruner, "query", None)


@functools.cache
def _code(cls: type[Pruner] | type[Corrector], asked: tuple[str | None, str | None], sources: Sources) -> str:
    """The code of a method's class and of what it imports; of a plug-in its whole top-level package (`foreign_code`).

    Its head strategy and its query (`asked`) may be a plug-in's, too.
    """
    from finepruner_lmms.heads.queries import QUERIES
    from finepruner_lmms.heads.registry import STRATEGIES
    from finepruner_lmms.pruners import Corrector, Pruner
    from finepruner_lmms.pruners.registry import registered_in

    defined: list[Any] = [base for base in cls.__mro__ if issubclass(base, (Pruner, Corrector))]
    strategy, query = asked
    defined += [one for one in (STRATEGIES.get(strategy), QUERIES.get(query)) if one is not None]
    # where it was registered counts too: a wrapper may set what the class reads
    modules = {thing.__module__ for thing in defined} | {registered_in(cls.name)}
    modules |= {STRATEGIES.registered_in(strategy), QUERIES.registered_in(query)}
    named = {module for module in modules if module is not None}
    own = {module for module in named if sources.file(module) is not None}
    scripts: dict[str, Path] = {}
    for thing in defined:
        if thing.__module__ not in own and not in_package(thing.__module__):
            scripts |= _defining_file(thing)
    foreign = foreign_code(named - own, scripts, {sources.name, *_LIBRARIES})
    own |= sources.needed_by_files(foreign.files)
    parts = [foreign.fingerprint()] if foreign.files else []

    def stop(by: str, _needed: str) -> bool:
        return by == f"{sources.name}.pruners"  # the list of all methods is no method's business

    needed = _follow(sources, own, stop) - engine_modules(sources)
    return short_hash("\n".join([*sorted(set(parts)), sources.fingerprint(needed)]))


def _defining_file(thing: Any) -> dict[str, Path]:
    """The file of a class or function in a script."""
    try:
        return {thing.__module__: Path(inspect.getfile(thing))}
    except (OSError, TypeError) as error:
        raise ValueError(
            f"method: {thing.__qualname__} is in no file, so its results could not be told from another's; "
            "define it in a module"
        ) from error


@functools.cache
def task_code(task: str, submission: bool, sources: Sources) -> str:
    """A fingerprint of a task's definition, its functions, and what makes scores of its samples."""
    text = (overrides_dir(sources.folder) / f"fp_{task}.yaml").read_text(encoding="utf-8")
    definition = yaml.load(text, _TaskLoader)
    if submission:
        definition |= yaml.load("\n".join(task_lines(task)), _TaskLoader)
    roots = {module for name in _functions(definition) if sources.file(module := name.rpartition(".")[0]) is not None}
    roots |= {f"{sources.name}.benchmarks.table", f"{sources.name}.benchmarks.images"}
    others = {f"{sources.name}.benchmarks.{name}" for name in BENCHMARKS} - {f"{sources.name}.benchmarks.{task}"}
    modules = _follow(sources, roots, lambda _by, needed: needed in others)
    return short_hash(json.dumps([definition, sources.fingerprint(modules)], sort_keys=True))


def other_task_code(definition: str, sources: Sources) -> str:
    """A fingerprint of a task that is none of the ten: the files that define it, and how its metric is read.

    What its functions import from elsewhere in lmms-eval counts by lmms-eval's version.
    """
    root = Path(definition).parent
    files = [(os.path.relpath(file, root), file, file.stat().st_mtime_ns) for file in definition_files(definition)]
    return _other_task_code(tuple(files), sources)


@functools.cache
def _other_task_code(files: tuple[tuple[str, Path, int], ...], sources: Sources) -> str:
    contents = {name: content_hash(file) for name, file, _ in files}
    modules = {f"{sources.name}.benchmarks.{name}" for name in ("measure", "record", "images")}
    return short_hash(json.dumps([contents, sources.fingerprint(modules)], sort_keys=True))


class _TaskLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the faster, where it was built
    """YAML with lmms-eval's `!function`."""


def _function(loader: yaml.SafeLoader, node: Any) -> dict[str, str]:
    return {"!function": str(loader.construct_scalar(node))}


_TaskLoader.add_constructor("!function", _function)


def _functions(value: Any) -> Iterator[str]:
    """The names of all functions in a task's definition."""
    if isinstance(value, dict):
        if "!function" in value:
            yield value["!function"]
        for part in value.values():
            yield from _functions(part)
    elif isinstance(value, list):
        for part in value:
            yield from _functions(part)


def _follow(sources: Sources, roots: Iterable[str], stop: Stop) -> frozenset[str]:
    """The modules that `roots` need, but for what is silent."""

    def silent_or_stop(by: str, needed: str) -> bool:
        name = needed.removeprefix(f"{sources.name}.")
        return any(name == quiet or name.startswith(f"{quiet}.") for quiet in SILENT) or stop(by, needed)

    return frozenset(sources.closure(roots, silent_or_stop))


def _room(module: str) -> str:
    """`engine` of `finepruner_lmms.engine.generate`."""
    return module.split(".")[1] if "." in module else ""
