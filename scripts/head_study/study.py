"""A study as one file: which models, world and questions, and which guides at which scoring layers and budgets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt

import finepruner_lmms as fp
from finepruner_lmms.budget import round_half_up
from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.heads.criteria import CRITERIA
from finepruner_lmms.pruners import Pruner, VisionPruner
from finepruner_lmms.sources import short_hash
from head_study.worlds import VISUAL, WORLDS

ALL = "all"
"""Where every visual token enters the language model, as for FastV."""
SHARE = Fraction(1, 3)
"""How many of the tokens that enter the model stay behind the scoring layer, where a first stage chose them."""
SPLITS = ("tuning", "test")
NO_PROFILES: Mapping[str, Path] = MappingProxyType({})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scenes(_Section):
    """How many scenes of each split: one is picked from, the other reported."""

    tuning: PositiveInt
    test: PositiveInt


class Choices(_Section):
    """Head strategies: at which scoring layers, and how many heads of each."""

    layers: tuple[PositiveInt, ...]
    heads: tuple[PositiveInt, ...]


class Study(_Section):
    """The file. `budgets` are averages over the layers; a scoring layer p guides the drop before layer p + 1.

    `layers` are the scoring layers behind the first stage, the method `first`; where all tokens enter, those of them
    are measured that can reach the budget. `kinds` of questions: all that need the picture, where none are named.
    `methods` are entries as in a matrix file; without a budget, at all of them.
    """

    world: Literal["easy", "hard"]
    models: dict[str, str]
    scenes: Scenes
    per_scene: PositiveInt = 3
    kinds: tuple[str, ...] = ()
    chunk: PositiveInt = 20
    budgets: tuple[PositiveInt, ...]
    first: str = "scope"
    layers: tuple[PositiveInt, ...]
    strategies: Choices
    profiles: tuple[str, ...] = ("evidence",)
    controls: PositiveInt = 2
    random: PositiveInt = 5
    methods: tuple[str | dict[str, Any], ...] = ()

    @cached_property
    def identity(self) -> str:
        """Of what all answers of a part depend on. Models and scenes are parts of their own, so a model that changes
        needs another name or folder; drops and methods are asked one by one, and a longer list asks what is new."""
        apart = {"models", "scenes", "budgets", "layers", "methods"}
        return short_hash(self.model_dump_json(exclude=apart))

    def parts(self, split: str) -> list[range]:
        """The scenes of a split, so many as are measured at once."""
        scenes: int = getattr(self.scenes, split)
        return [range(start, min(start + self.chunk, scenes)) for start in range(0, scenes, self.chunk)]

    def drops(self, layers: int) -> list[Drop]:
        """Where tokens may be dropped, in a model of so many layers."""
        found = [drop for budget in self.budgets for drop in self._single(budget, layers)]
        return found + [behind(self.first, p, budget, layers) for budget in self.budgets for p in self.layers]

    def _single(self, budget: int, layers: int) -> Iterator[Drop]:
        for p in sorted({0, *self.layers}):
            if (p + 1) * VISUAL < budget * layers:
                pruner = fp.build_pruner("fastv", budget=budget, layer=p + 1)
                yield Drop(ALL, p, budget, VISUAL, pruner.schedule(layers, VISUAL)[-1])

    def pruners(self, profiles: Mapping[str, Path] = NO_PROFILES) -> list[tuple[str, int, Pruner]]:
        """The registered methods: what each is called, its budget, and itself; lists multiply. `budget: 0` is for those
        that take none.

        A value `$evidence` is the file of a model's own profile by that criterion. Methods that name one whose file is
        not known yet are left out.
        """
        found = []
        for entry in self.methods:
            given = {"budget": list(self.budgets)} | ({"method": entry} if isinstance(entry, str) else entry)
            name, budgets = given.pop("method"), given.pop("budget")
            axes = [[(key, one) for one in _listed(value)] for key, value in given.items()]
            for values in itertools.product(*axes):
                named = {one[1:] for _, one in values if isinstance(one, str) and one.startswith("$")}
                if unknown := named - set(self.profiles):
                    raise FieldError("methods", f"${unknown.pop()} is none of profiles", value=entry)
                if named <= set(profiles):
                    own = {key: _own(one, profiles) for key, one in values}
                    label = " ".join([name, *(f"{key}={value}" for key, value in values)])
                    found += [(label, b, fp.build_pruner(name, budget=b, **own)) for b in _listed(budgets)]
        return found


def _own(value: Any, profiles: Mapping[str, Path]) -> Any:
    return str(profiles[value[1:]]) if isinstance(value, str) and value.startswith("$") else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Drop:
    """`first` tokens enter the model, chosen by `start`; scored by layer `p`, `retained` of them enter layer p + 1."""

    start: str
    p: int
    budget: int
    first: int
    retained: int

    def average(self, layers: int) -> float:
        """Visual tokens entering a layer, mean over the layers: the budget, but for rounding."""
        return ((self.p + 1) * self.first + (layers - self.p - 1) * self.retained) / layers


def behind(start: str, p: int, budget: int, layers: int) -> Drop:
    """The drop behind scoring layer `p` with about a third of the tokens kept, at that average over the layers."""
    before, after = p + 1, layers - p - 1
    if after < 1:
        raise FieldError("layers", f"got {p}; no layer follows it in a model of {layers}", value=p)
    first = min(VISUAL, round_half_up(Fraction(layers * budget) / (before + after * SHARE)))
    return Drop(start, p, budget, first, round_half_up(Fraction(layers * budget - before * first, after)))


def read_study(file: Path) -> Study:
    """The study of a YAML file. Raises pydantic's error of what is wrong in it, `FieldError` of a wrong method."""
    study = Study.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    first = fp.build_pruner(study.first, budget=study.budgets[0])
    if not isinstance(first, VisionPruner) or first.reads_question:
        raise FieldError("first", f"{study.first!r} does not choose before the model by the picture alone")
    for kind in study.kinds:
        check_choice("kinds", kind, WORLDS[study.world].kinds)
    for criterion in study.profiles:
        check_choice(
            "profiles", criterion, [one for one in CRITERIA if one != "gradient"]
        )  # which needs more than rows
    study.pruners()
    return study
