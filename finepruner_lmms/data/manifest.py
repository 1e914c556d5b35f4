"""The manifest of a task or checkpoint in a data root: what was fetched from where, with sizes and hashes.

    ROOT/<task>/[<table>/]*.parquet      one benchmark; the folder appears when it is complete, never before
    ROOT/<task>/manifest.json
    ROOT/checkpoints/<owner>/<name>/     a model, with a manifest.json of its own
    ROOT/.incoming/                      what is being prepared: finished files, .part files, locks

A root made by hand has no manifests; it is read all the same. A manifest has no dates: the same data gives the same
bytes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.errors import explain_problem
from finepruner_lmms.files import read_object, write_json
from finepruner_lmms.sources import short_hash

MANIFEST = "manifest.json"
INCOMING = ".incoming"
SCHEMA = 1


@dataclass(frozen=True)
class File:
    """One file: `path` below the task's folder, `origin` its path in the repository.

    `compared` says whether `sha256` (for small files of a repository: its git hash) is the one that the hub declares,
    or only the one that was found. `rows` is None where the file is not a table.
    """

    path: str
    origin: str
    size: int
    sha256: str
    compared: bool
    rows: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What a folder of a data root holds. `revision` is the commit, None where it is not known."""

    name: str
    repo: str
    asked: str
    revision: str | None
    files: tuple[File, ...]
    rows: dict[str, int]
    expected_rows: dict[str, int]

    def identity(self) -> str:
        """A fingerprint of the content, the same wherever and whenever it was prepared: 12 hexadecimal digits."""
        return identity_of((file.path, file.sha256) for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def write(self, folder: Path) -> None:
        """Write it to `folder`, as a whole."""
        files = [asdict(file) for file in self.files]
        write_json(folder / MANIFEST, {"schema_version": SCHEMA, **vars(self), "files": files})


def identity_of(files: Iterable[tuple[str, str]]) -> str:
    """A fingerprint of files given as path and hash of content, in any order: 12 hexadecimal digits."""
    return short_hash("\n".join(sorted(f"{path} {digest}" for path, digest in files)))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none. `DataError` if it is not readable as one."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    raw: dict[str, Any] | None = read_object(path)
    if raw is None or raw.pop("schema_version", None) != SCHEMA:
        raise DataError("data", f"{path} is not a manifest of this version", fix=f"{_prepare(folder)} writes it anew")
    again = f"{_prepare(folder)} writes it anew"
    try:
        manifest = TypeAdapter(Manifest).validate_python(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise DataError("data", f"{path} is not a manifest ({field}: {explain_problem(problem)})", fix=again) from None
    for file in manifest.files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise DataError("data", f"{path} names {file.path!r}, which is not below its folder", fix=again)
    return manifest


def _prepare(folder: Path) -> str:
    """The command that makes a folder of a data root, as it is typed: a task's, or a checkpoint's."""
    owner = folder.parent
    if owner.parent.name == "checkpoints":
        root, what = owner.parent.parent, f"--checkpoint {shlex.quote(f'{owner.name}/{folder.name}')}"
    else:
        root, what = owner, f"--tasks {shlex.quote(folder.name)}"
    return f"`finepruner prepare --data {shlex.quote(str(root))} {what}`"


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise `DataError` unless every file is there in its full size, and no table beside them; nothing is read."""
    for file in manifest.files:
        path = folder / file.path
        size = path.stat().st_size if path.is_file() else None
        if size != file.size:
            found = "is missing" if size is None else f"has {size:,} bytes instead of {file.size:,}"
            raise DataError("data", f"{path} {found}", fix=f"{_prepare(folder)} fetches it anew")
    known = {file.path for file in manifest.files}
    for place in sorted({str(Path(path).parent) for path in known if path.endswith(".parquet")}):
        for path in (folder / place).glob("*.parquet"):
            if path.relative_to(folder).as_posix() not in known:  # it would be read with them
                raise DataError("data", f"{path} is not of this benchmark's files ({MANIFEST})", fix="move it away")


def check_task(root: Path, name: str, tables: tuple[str, ...] = ("",)) -> Manifest | None:
    """The manifest of a task whose data is there; None for data put there by hand. `DataError` saying what is missing.

    `tables` are the folders that must hold parquet files. Sizes are compared, nothing is read.
    """
    folder = root / name
    repair = f"run {_prepare(folder)}"
    if not folder.is_dir():
        begun = (root / INCOMING / name).is_dir()
        state = "is not complete: `prepare` was interrupted" if begun else "is not there"
        raise DataError("data", f"{folder} {state}", fix=repair)
    manifest = read_manifest(folder)
    if manifest is not None:
        check_files(folder, manifest)
        return manifest
    for table in tables:
        if not any((folder / table).glob("*.parquet")):
            raise DataError("data", f"{folder / table} holds no .parquet files", fix=repair)
    return None
