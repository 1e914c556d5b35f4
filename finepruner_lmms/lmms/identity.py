"""What an answer depends on besides its parameters: the code and the checkpoint, as short fingerprints."""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import metadata
from pathlib import Path

from finepruner_lmms.pruners.plugins import plugin_files

_PACKAGE = Path(__file__).parents[1]
# these folders decide which answers are computed, how they are shown and where data comes from (the data itself is part
# of a cell's identity), not what the answers are
_SILENT = {"matrix", "data", "__pycache__"}
_LIBRARIES = ("lmms_eval", "transformers", "torch", "pillow")


@functools.cache
def code_revision() -> str:
    """A fingerprint of the source, plug-ins included, that can change an answer or its score: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        relative = file.relative_to(_PACKAGE)
        if not _SILENT & set(relative.parts):
            digest.update(f"{relative.as_posix()}\n".encode() + file.read_bytes())
    for file in plugin_files():
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that compute, preprocess and score."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@functools.lru_cache(maxsize=64)
def checkpoint_identity(folder_or_id: str) -> str:
    """A hub id as it is; for a folder, a fingerprint of its configuration and the size and time of its weights.

    A checkpoint of the original code base may have its vision tower in another folder, which then counts as well.
    """
    from finepruner_lmms.checkpoints.original_config import tower_folder

    folder = Path(folder_or_id)
    if not folder.is_dir():
        return folder_or_id
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        status = file.stat()
        # small files by content, large ones by what changes when they are written
        content = file.read_bytes() if status.st_size < 1 << 24 else f"{status.st_size} {status.st_mtime_ns}".encode()
        digest.update(f"{file.name}\n".encode() + content)
    if tower := tower_folder(folder):
        digest.update(f"tower {checkpoint_identity(str(tower))}".encode())
    return digest.hexdigest()[:12]


def answer_identity(pretrained_path: str) -> str:
    """Code, libraries and checkpoint in one line, for cache keys."""
    parts = {"code": code_revision(), "checkpoint": checkpoint_identity(pretrained_path), **library_versions()}
    return json.dumps(parts, sort_keys=True)
