"""The data that a task reads, by its content."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.hub import commit_of
from finepruner_lmms.data.lmms_tasks import TaskFile, definition_of
from finepruner_lmms.data.manifest import identity_of, read_manifest
from finepruner_lmms.data.task_folders import overrides_dir
from finepruner_lmms.demo.root import MINIATURES, content_identity
from finepruner_lmms.files import content_hash

_FORMATS = ("parquet", "json", "csv", "text", "arrow", "imagefolder", "webdataset")
UNKNOWN_COMMIT = "?"
"""Stands for the commit in an identity where nobody could be asked."""


def data_identity(data: str, name: str) -> str:
    """The data that a task reads, by its content: the same wherever it is, however it was fetched, whenever touched.

    For the hub its repository and commit, which is `?` where it cannot be known: see `hub.commit_of`.
    """
    if data == "hub":
        repository = hub_repository(name)
        return f"{repository}@{commit_of(repository, 'dataset') or UNKNOWN_COMMIT}"
    if data in MINIATURES:
        return content_identity(data)
    folder = Path(data).resolve() / name
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest.identity()
    tables = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.parquet")}
    return identity_of((name, content_hash(file)) for name, file in tables.items())


def task_data_identity(task: TaskFile) -> str:
    """The data of a task that is none of the ten: the content of local files, else repository and commit."""
    if task.dataset_path is None:
        return UNKNOWN_COMMIT
    if task.dataset_path not in _FORMATS and not Path(task.dataset_path).is_dir():
        return f"{task.dataset_path}@{commit_of(task.dataset_path, 'dataset') or UNKNOWN_COMMIT}"
    files = sorted(_files(definition_of(task.file), Path(task.dataset_path)))
    if not files:
        problem = f"{task.name!r} reads files that are not there ({task.file})"
        raise DataError("data", problem, fix="give their paths in its data_files", value=task.name)
    return identity_of((str(number), content_hash(file)) for number, file in enumerate(files))


def _files(definition: dict[str, Any], folder: Path) -> set[Path]:
    if folder.is_dir():
        return {file for file in folder.rglob("*") if file.is_file()}
    given = (definition.get("dataset_kwargs") or {}).get("data_files", [])
    values = list(given.values()) if isinstance(given, dict) else [given]
    patterns = [one for value in values for one in (value if isinstance(value, list) else [value])]
    found = (glob.glob(str(pattern), recursive=True) for pattern in patterns)  # noqa: PTH207 - any path, as `datasets`
    return {Path(file) for files in found for file in files}


def hub_repository(name: str) -> str:
    """The data set that the hub's task of a benchmark reads."""
    text = (overrides_dir() / f"fp_{name}.yaml").read_text(encoding="utf-8")
    (repository,) = re.findall(r"^dataset_path: *(\S+)", text, re.MULTILINE)
    return str(repository)
