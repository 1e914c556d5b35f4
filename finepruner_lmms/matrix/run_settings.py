"""`run.json`: how the latest `run` was asked to work, for whoever goes on with it from somewhere else."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from finepruner_lmms.files import write_json
from finepruner_lmms.matrix.records import Damage, Number, Record, load
from finepruner_lmms.matrix.sections import MatrixFile

NAME = "run.json"


class RunSettings(Record):
    """The checked matrix file, and how long each cell is expected to take in one process, by its id."""

    file: MatrixFile
    began: Number = 0.0
    """When that was, in seconds since 1970: what failed later is not tried again before the next `run`."""
    passed_over: tuple[str, ...] = ()
    """Cells that failed before and are not to be tried again, by their ids."""
    written: str = ""
    """The matrix file as it was written, comments and all; "" in files of versions that did not keep it."""
    seconds: dict[str, Number] = Field(default_factory=dict)


def save_settings(root: Path, settings: RunSettings) -> None:
    """Write them beside `matrix.json`."""
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / NAME, settings.model_dump(mode="json"))


def read_settings(root: Path) -> RunSettings:
    """What `save_settings` wrote. `Damage` where there is none, or it holds something else."""
    if (found := load(RunSettings, root / NAME)) is None:
        raise Damage(f"{NAME} is not there")
    return found
