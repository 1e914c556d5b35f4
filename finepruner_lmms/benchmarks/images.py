"""Which questions share an image: by a name, or by the picture's content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def image_names(documents: Any, column: str) -> list[str]:
    """The image of each question of a `datasets.Dataset`, by name, or by content where `column` holds pictures.

    Encoded bytes are hashed as they are stored; no picture is decoded. One that is missing is an image of its own.
    """
    import datasets

    if not isinstance(documents.features[column], datasets.Image):
        return [str(name) for name in documents.select_columns([column])[column]]
    stored = documents.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return [_name(place, row[column]) for place, row in enumerate(stored)]


def _name(place: int, picture: dict[str, Any] | None) -> str:
    if picture is None:
        return f"none {place}"
    content = picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]
