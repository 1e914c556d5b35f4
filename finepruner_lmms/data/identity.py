"""The data that a task reads, by its content."""

from __future__ import annotations

import re
from pathlib import Path

from finepruner_lmms.data.hub import commit_of
from finepruner_lmms.data.manifest import identity_of, read_manifest
from finepruner_lmms.data.task_folders import DEMO_SPLITS, overrides_dir
from finepruner_lmms.demo.root import content_identity
from finepruner_lmms.files import content_hash

UNKNOWN_COMMIT = "?"
"""Stands for the commit in an identity where nobody could be asked."""


def data_identity(data: str, name: str) -> str:
    """The data that a task reads, by its content: the same wherever it is, however it was fetched, whenever touched.

    For the hub its repository and commit, which is `?` where it cannot be known: see `hub.commit_of`.
    """
    if data == "hub":
        repository = hub_repository(name)
        return f"{repository}@{commit_of(repository, 'dataset') or UNKNOWN_COMMIT}"
    if data in DEMO_SPLITS:
        return content_identity(DEMO_SPLITS[data])
    folder = Path(data).resolve() / name
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest.identity()
    tables = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.parquet")}
    return identity_of((name, content_hash(file)) for name, file in tables.items())


def hub_repository(name: str) -> str:
    """The data set that the hub's task of a benchmark reads."""
    text = (overrides_dir() / f"fp_{name}.yaml").read_text(encoding="utf-8")
    (repository,) = re.findall(r"^dataset_path: *(\S+)", text, re.MULTILINE)
    return str(repository)
