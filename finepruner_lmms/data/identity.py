"""What the answers to a task depend on: its definition, and the data behind it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finepruner_lmms.data.manifest import read_manifest
from finepruner_lmms.data.task_folders import DEMO_SPLITS, overrides_dir
from finepruner_lmms.demo.root import fingerprint


def data_identity(data: str, name: str) -> str:
    """A fingerprint of the definition of the task `name`, and of its data in `data` (as `task_folders.folder`)."""
    definition = hashlib.sha256((overrides_dir() / f"fp_{name}.yaml").read_bytes()).hexdigest()[:12]
    if data == "hub":
        return definition
    if data in DEMO_SPLITS:
        return f"{definition} {fingerprint(DEMO_SPLITS[data])}"
    root = Path(data).resolve()
    manifest = read_manifest(root / name)
    if manifest is not None:
        return f"{definition} {manifest.identity()}"
    files = sorted(file for file in (root / name).rglob("*") if file.is_file())
    listing = [f"{file.relative_to(root)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return f"{definition} {hashlib.sha256(chr(10).join(listing).encode()).hexdigest()[:12]}"
