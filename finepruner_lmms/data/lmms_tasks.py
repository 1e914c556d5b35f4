"""lmms-eval's own tasks, and a user's, by name: found in their YAML files, without lmms-eval's imports.

lmms-eval has two thousand of these files; what they say is read once for each of its versions, and remembered.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from finepruner_lmms.files import cache_dir, load_object, write_json

_RULES = 4
"""What was remembered under other rules is read again."""
_WANTED = ("task", "group", "tag", "include", "output_type", "class", "dataset_path")
_TOP = re.compile(r"^(?=[^\s#-])", re.MULTILINE)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 20  # includes
_BESIDE = (".py", ".json", ".jsonl", ".txt")
ANSWERED = ("generate_until", "generate_until_multi_round")
"""The kinds of questions that a model answers with text; the others are likelihoods, tools or pictures."""


@dataclass(frozen=True)
class TaskFile:
    """What is called by a name: a task with its YAML `file`, or a group or tag with its `members`.

    `output_type` is what a task asks for, and `dataset_path` where its questions are, both as the file says; None where
    only the code of a Python class says it.
    """

    name: str
    file: str = ""
    members: tuple[str, ...] = ()
    output_type: str | None = None
    dataset_path: str | None = None


def lmms_tasks() -> Mapping[str, TaskFile]:
    """All that lmms-eval knows by name."""
    root = _package() / "tasks"
    place = hashlib.sha256(f"{_RULES} {metadata.version('lmms_eval')} {root} {_age(root)}".encode()).hexdigest()[:12]
    memory = cache_dir() / f"lmms-tasks-{place}.json"
    with suppress(ValueError, TypeError, LookupError):  # not there, or not what was written
        found = load_object(memory)
        return {name: TaskFile(**{**about, "members": tuple(about["members"])}) for name, about in found.items()}
    tasks = folder_tasks(root)
    with suppress(OSError):  # then the next call reads again
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, {name: asdict(task) for name, task in tasks.items()})
    return tasks


def all_tasks(tasks_dir: str | None) -> dict[str, TaskFile]:
    """What is known by name: lmms-eval's, and before these a user's own in the folder `tasks_dir`."""
    return {**lmms_tasks(), **(folder_tasks(Path(tasks_dir)) if tasks_dir else {})}


def folder_tasks(root: Path) -> dict[str, TaskFile]:
    """What the YAML files of a folder define."""
    found: dict[str, TaskFile] = {}
    tags: dict[str, list[str]] = {}
    for file in _yaml_files(root):
        about = _with_includes(file)
        task, group = about.get("task"), about.get("group")
        if isinstance(task, list) and isinstance(group, str):
            found[group] = TaskFile(group, str(file), tuple(name for entry in task for name in _members(entry)))
        elif isinstance(task, str):
            kind = None if "class" in about else str(about.get("output_type", "generate_until"))
            data = about.get("dataset_path")
            found[task] = TaskFile(task, str(file), (), kind, data if isinstance(data, str) else None)
            for name in (*_names(about.get("tag")), *_names(group)):
                tags.setdefault(name, []).append(task)
    return {name: TaskFile(name, "", tuple(members)) for name, members in tags.items()} | found


def definition_files(definition: str) -> list[Path]:
    """The files that say what a task is: its YAML file, what that includes, and code and texts beside these."""
    found: dict[Path, None] = {}
    file = Path(definition)
    for place in (file, *_included(file)):
        found[place] = None
        found.update(dict.fromkeys(one for one in sorted(place.parent.iterdir()) if one.suffix in _BESIDE))
    return list(found)


def definition_of(definition: str) -> dict[str, Any]:
    """What a task's YAML file says, with what it includes; functions by their names."""
    whole: dict[str, Any] = {}
    for place in (*reversed(_included(Path(definition))), Path(definition)):
        value = yaml.load(place.read_text(encoding="utf-8-sig"), _Functions)
        whole |= value if isinstance(value, dict) else {}
    return whole


class _Functions(_LOADER):  # type: ignore[misc, valid-type]  # the faster, where it was built
    """YAML with lmms-eval's `!function`."""


_Functions.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(node)))


def _package() -> Path:
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None and spec.origin is not None, "it is a dependency"
    return Path(spec.origin).parent


def _age(root: Path) -> str:
    """Changes where a task's folder comes or goes, as it does in a checkout."""
    return str(root.stat().st_mtime_ns)


def _yaml_files(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name not in ("__pycache__", ".ipynb_checkpoints"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".yaml"))


def _about(file: Path) -> dict[str, Any]:
    """The keys that matter, each read alone: what a file has besides may be long, or lmms-eval's own YAML."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # some begin with a byte order mark
    except (OSError, ValueError):
        return {}
    found: dict[str, Any] = {}
    for part in _TOP.split(text):
        name = part.partition(":")[0].strip("\"' ")
        if name in _WANTED:
            try:
                value = yaml.load(part, _LOADER)
            except yaml.YAMLError:
                continue
            found |= value if isinstance(value, dict) else {}
    if "class" not in found and re.search(r"^class *:", text, re.MULTILINE):
        found["class"] = True
    return found


def _included(file: Path) -> list[Path]:
    """The files that a file includes, and these."""
    found: list[Path] = []
    waiting = [file]
    while waiting and len(found) < _DEEPEST:
        one = waiting.pop()
        for name in _names(_about(one).get("include")):
            place = Path(name) if Path(name).is_absolute() else one.parent / name
            if place.is_file() and place not in found:
                found.append(place)
                waiting.append(place)
    return found


def _with_includes(file: Path) -> dict[str, Any]:
    """What a file says, and before it what it includes: even a task's name may stand there."""
    about = _about(file)
    whole: dict[str, Any] = {}
    for place in reversed(_included(file) if "include" in about else []):
        whole |= _about(place)
    return whole | about


def _members(entry: Any) -> list[str]:
    """The names in an entry of a group's list, which may be a mapping with several of them."""
    return _names(entry.get("task", entry.get("group"))) if isinstance(entry, dict) else [str(entry)]


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value if isinstance(one, str)] if isinstance(value, list) else []
