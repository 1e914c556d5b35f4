"""The identity of an answer as it is written down and compared; `lmms.identity` finds it out."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Identity(BaseModel):
    """What an answer, or with `task` and `data` a cell's result, depends on. Equal identities, equal results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: str
    """A fingerprint of the method's parameters and the model's, and of what is asked."""
    dtype: str
    """`float16`, `bfloat16` or `float32`: never `auto`."""
    checkpoint: str
    """A fingerprint of its content; for a hub repository its name and commit."""
    libraries: dict[str, str]
    """Version by name."""
    engine: dict[str, str]
    """Fingerprints of the code that every cell runs, by room."""
    method: dict[str, str]
    """Fingerprints of the code that the method needs besides, by method (a composition has two)."""
    task: str = ""
    """A fingerprint of the task's definition and its functions."""
    data: str = ""
    """A fingerprint of the data's content; for a hub data set its name and commit."""

    @property
    def id(self) -> str:
        """All of it as 12 hexadecimal digits."""
        from finepruner_lmms.sources import short_hash

        return short_hash(self.text())

    def text(self) -> str:
        """All of it in one line."""
        return json.dumps(self.model_dump(), sort_keys=True)

    def changes_since(self, earlier: Identity) -> list[str]:
        """What is different from `earlier`, in words: `fastv's code changed`, `torch 2.11.0 → 2.12.0`."""
        found = []
        if self.settings != earlier.settings:
            found.append("the settings changed")
        if self.dtype != earlier.dtype:
            found.append(f"dtype {earlier.dtype} → {self.dtype}")
        if self.checkpoint != earlier.checkpoint:
            found.append(_changed("the checkpoint", earlier.checkpoint, self.checkpoint))
        if self.data != earlier.data:
            found.append(_changed("the data", earlier.data, self.data))
        for name in _different(earlier.libraries, self.libraries):
            found.append(f"{name} {earlier.libraries.get(name, 'none')} → {self.libraries.get(name, 'none')}")
        if rooms := _different(earlier.engine, self.engine):
            found.append(f"the code of {', '.join(rooms)} changed, which every cell runs")
        found += [f"{name}'s code changed" for name in _different(earlier.method, self.method)]
        if self.task != earlier.task:
            found.append("the task's definition or scoring changed")
        return found

    @property
    def unknown(self) -> list[str]:
        """The hub repositories whose commit is not known, so that a change of them would not be noticed."""
        from finepruner_lmms.data.identity import UNKNOWN_COMMIT

        parts = [part for text in (self.checkpoint, self.data) for part in text.split()]
        return [part.rpartition("@")[0] for part in parts if part.endswith(f"@{UNKNOWN_COMMIT}")]


def _different(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name))


def _changed(what: str, earlier: str, now: str) -> str:
    """With both values where these are names."""
    return f"{what} changed" if "@" not in earlier + now else f"{what} changed: {earlier} → {now}"
