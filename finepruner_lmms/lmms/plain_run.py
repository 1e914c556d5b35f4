"""A plain `lmms_eval` run with a journal, in the folder that the environment names.

Beside the answers stands what gave them, so that whoever finds the folder can check it and count what they cost.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from finepruner_lmms.engine.cost import DecoderSizes
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import load_object, write_json
from finepruner_lmms.lmms.identity_record import Identity

VARIABLE = "FINEPRUNER_JOURNAL"
"""In the environment: the folder of the journal; without it, a run outside the matrix runner keeps none."""
_FILE = "identity.json"


class Answerer(BaseModel):
    """What gave the answers of a folder: the `identity` of the model and method, and the `sizes` of the decoder."""

    model_config = ConfigDict(frozen=True)

    identity: Identity
    sizes: DecoderSizes

    def write(self, folder: Path) -> None:
        """Into the journal's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _FILE, {"identity": self.identity.model_dump(), "sizes": asdict(self.sizes)})

    @classmethod
    def read(cls, folder: Path) -> Answerer:
        """What `write` wrote; `FieldError` where that is not there."""
        value = load_object(folder / _FILE)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise FieldError(_FILE, f"{str(folder / _FILE)!r} does not say what gave the answers") from error


def journal_folder() -> Path | None:
    """The folder that the environment names."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None
