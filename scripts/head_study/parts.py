"""The answers of one model to some scenes as a file, and what of a study is still to be asked about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finepruner_lmms.pruners import Pruner, build_pruner
from finepruner_lmms.sources import short_hash
from head_study.study import Drop, Study

VANILLA = "vanilla"
METHOD = "method"
_BY_CHOICE = ("names", "settings", "right", "evidence", "average")


def choice_name(start: str, p: int, budget: int, guide: str) -> str:
    """What a choice is called in results: parts are found again by `split("/")`."""
    return f"{start}/{p}/{budget}/{guide}"


EVERYTHING = choice_name(VANILLA, 0, 0, VANILLA)
"""The choice of all tokens."""


@dataclass(frozen=True)
class Agenda:
    """What some scenes are asked: all tokens (`vanilla`), the guides of drops, and methods."""

    vanilla: bool
    drops: Sequence[Drop]
    methods: Sequence[tuple[str, int, Pruner]]

    @classmethod
    def whole(cls, study: Study, depth: int, profiles: Mapping[str, Path]) -> Agenda:
        """All that a study asks."""
        return cls(True, study.drops(depth), study.pruners(profiles))

    def __bool__(self) -> bool:
        return self.vanilla or bool(self.drops) or bool(self.methods)


def settings(pruner: Pruner) -> str:
    """A method's parameters in short; a file counts by its content.

    A new parameter makes it another method, whatever its default; code that computes something else under the same
    parameters does not: a study of it needs another folder.
    """
    found = {
        key: Path(value).name if isinstance(value, str) and "@" in value else value
        for key, value in pruner.parameters().items()
    }
    return short_hash(json.dumps(found, sort_keys=True, default=str))


def guide_settings(study: Study, profiles: Mapping[str, Path]) -> str:
    """The same of the guides at a drop: the first stage's parameters, and the profiles."""
    files = {criterion: short_hash(file.read_text(encoding="utf-8")) for criterion, file in profiles.items()}
    return short_hash(json.dumps([settings(build_pruner(study.first)), files], sort_keys=True))


def method_name(row: tuple[str, int, Pruner]) -> str:
    """What a method at a budget is called in results."""
    label, budget, _ = row
    return choice_name(METHOD, 0, budget, label)


@dataclass(frozen=True)
class Part:
    """The answers to some scenes: by choice (`names`), `right` `[C, Q]`, and the share of the evidence tokens that was
    kept `[C, Q]`, NaN where a question hangs on none. `average` `[C]`: visual tokens per layer, of `depth` layers.
    `settings` `[C]`: with which parameters, those by default among them."""

    names: np.ndarray
    settings: np.ndarray
    right: np.ndarray
    evidence: np.ndarray
    average: np.ndarray
    scenes: np.ndarray
    kinds: np.ndarray
    depth: np.ndarray

    def agenda(self, study: Study, depth: int, profiles: Mapping[str, Path]) -> Agenda:
        """What a study asks that is not here."""
        asked = set(zip(self.names.tolist(), self.settings.tolist(), strict=True))
        guided = guide_settings(study, profiles)
        drops = {tuple(name.split("/", 3)[:3]) for name, how in asked if how == guided}
        return Agenda(
            False,
            [one for one in study.drops(depth) if (one.start, str(one.p), str(one.budget)) not in drops],
            [row for row in study.pruners(profiles) if (method_name(row), settings(row[-1])) not in asked],
        )

    def joined(self, more: Part) -> Part:
        """With more choices about the same scenes; of those that both have, the later. `ValueError` if the questions
        are not the same any more."""
        if not (np.array_equal(self.scenes, more.scenes) and np.array_equal(self.kinds, more.kinds)):
            raise ValueError("the questions are not those of the part that is there; give the study another folder")
        kept = ~np.isin(self.names, more.names)
        pairs = {key: (getattr(self, key)[kept], getattr(more, key)) for key in _BY_CHOICE}
        return replace(self, **{key: np.concatenate(pair) for key, pair in pairs.items()})

    def save(self, file: Path, identity: str) -> None:
        """Whole or not at all."""
        partial = file.with_suffix(".partial.npz")
        np.savez_compressed(partial, identity=np.array(identity), **vars(self))
        partial.replace(file)


def read_part(file: Path, identity: str) -> Part:
    """A file of `save`. `ValueError` if it is not there, or of a study that measured something else."""
    if not file.exists():
        raise ValueError(f"{file}: is not there; head_study.equal makes it")
    found = dict(np.load(file))
    if str(found.pop("identity")) != identity:
        raise ValueError(f"{file}: is of another study; give this one another folder")
    return Part(**found)
