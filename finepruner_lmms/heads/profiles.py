"""Finding a head profile: a published list by its name, or a JSON file."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from finepruner_lmms.errors import FieldError, nearest, show
from finepruner_lmms.files import expand_home, parse_json, read_bytes
from finepruner_lmms.heads.profile import HeadProfile
from finepruner_lmms.heads.published import PUBLISHED

_LARGEST = 4_000_000  # bytes: all heads of 80 layers, with room for what others write
_DIGEST = 12


def written_profile(field: str, text: Any) -> str:
    """How a profile is written in a method's parameters: a published name, or `file.json@` and a part of its sha256.

    So a result never outlives the file's content. `FieldError` of `field` where there is neither.
    """
    name, _, digest = _found(field, text)
    return name if digest is None else f"{name}@{digest}"


def find_profile(field: str, text: Any) -> HeadProfile:
    """The profile that `written_profile` gave a name to; `FieldError` of `field` where the file has changed since."""
    return _found(field, text)[1]


def _found(field: str, text: Any) -> tuple[str, HeadProfile, str | None]:
    if isinstance(text, str) and text in PUBLISHED:
        return text, PUBLISHED[text], None
    path, at, expected = str(text).rpartition("@")
    if not at or len(expected) != _DIGEST or not path.endswith(".json"):
        path, expected = str(text), ""
    if not isinstance(text, str) or not path.endswith(".json"):
        problem = f"got {show(text)}{nearest(text, PUBLISHED)}; expected a .json file, or one of {', '.join(PUBLISHED)}"
        raise FieldError(field, problem, value=text)
    try:
        content = read_bytes(Path(expand_home(path)), _LARGEST)
    except OSError as error:
        raise FieldError(field, f"cannot read {show(path)}: {error.strerror}", value=path) from error
    digest = hashlib.sha256(content).hexdigest()[:_DIGEST]
    if expected and digest != expected:
        problem = f"{show(path)} is not what it was: its sha256 begins with {digest}, not {expected}"
        raise FieldError(field, problem, value=text, fix="leave out the part from '@' on: these are other results")
    return path, _read(field, path, content), digest


@lru_cache(maxsize=64)
def _read(field: str, path: str, content: bytes) -> HeadProfile:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise FieldError(field, f"{show(path)} is not valid JSON ({error})", value=path) from error
    parts = ("model", "task", "source", "layers", "heads", "weights")
    if not isinstance(value, dict) or any(part not in value for part in parts):
        raise FieldError(field, f"{show(path)} is no head profile", value=path, fix=f"it has {', '.join(parts)}")
    rows = value["weights"]
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise FieldError(field, f"{show(path)}: weights are lists of [layer, head, weight]", value=path)
    if not all(isinstance(value[part], str) for part in parts[:3]):
        raise FieldError(field, f"{show(path)}: model, task and source are texts", value=path)
    try:
        return HeadProfile(name=Path(path).name, weights=tuple(map(tuple, rows)), **{p: value[p] for p in parts[:-1]})
    except FieldError as error:
        raise FieldError(field, f"{show(path)}: {error.field}: {error.problem}", value=path, fix=error.fix) from error
