"""One line of `finepruner doctor`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do. `missing` stops a run, `warning` does not.

    `fix` is in words, `command` is a line of a shell that runs as it stands.
    """

    topic: str
    status: Status
    text: str
    fix: str = ""
    command: str = ""


def writable(topic: str, folder: Path, fix: str) -> Check:
    """Whether files can be put into a folder that may not exist yet; nothing is made."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return Check(topic, "ok", f"{folder} can be written")
    return Check(topic, "missing", f"{folder} cannot be written", fix)
