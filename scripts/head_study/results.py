"""Reading what `equal` measured: scores, paired differences over scenes, and how much evidence was kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finepruner_lmms.statistics.differences import Difference, difference
from finepruner_lmms.statistics.tally import Tally, sum_by_image
from head_study.equal import part_file, profile_files
from head_study.guides import FASTV
from head_study.parts import EVERYTHING, METHOD, VANILLA, Part, choice_name, guide_settings, method_name, read_part
from head_study.study import ALL, Study

Name = str | Sequence[str]
"""A choice, or one for each model."""


@dataclass(frozen=True, order=True)
class Choice:
    """A choice by its parts: where the tokens enter, the scoring layer, the budget and the guide or method."""

    start: str
    p: int
    budget: int
    guide: str

    @classmethod
    def of(cls, name: str) -> Choice:
        """From its name."""
        start, p, budget, guide = name.split("/", 3)
        return cls(start, int(p), int(budget), guide)

    @property
    def name(self) -> str:
        """What it is called in results."""
        return choice_name(self.start, self.p, self.budget, self.guide)

    @property
    def same_drop(self) -> str:
        """FastV's rule at the same drop: what a choice of heads is held against."""
        return choice_name(self.start, self.p, self.budget, FASTV)

    @property
    def candidate(self) -> bool:
        """Whether it is a rule that one could use: no oracle, no control, not FastV's own."""
        apart = self.start in (METHOD, VANILLA) or self.guide == FASTV or "shuffled" in self.guide
        return not apart and not self.guide.startswith(("oracle", "random"))


class Results:
    """What the models of a study answered to one split, by the choices that all of them were asked."""

    def __init__(self, study: Study, out: Path, split: str) -> None:
        self.models = list(study.models)
        parts = {
            model: [read_part(part_file(out, model, split, scenes), study.identity) for scenes in study.parts(split)]
            for model in self.models
        }
        first = parts[self.models[0]]
        named = {model: _asked(study, own, out, model) for model, own in parts.items()}
        shared = set.intersection(*map(set, named.values()))
        self.names = [name for name in named[self.models[0]] if name in shared]
        self.left_out = sorted(set().union(*named.values()) - shared)
        """What some models alone were asked: a model's profile may name no head of a layer."""
        self._place = {name: place for place, name in enumerate(self.names)}
        self.scenes = np.concatenate([part.scenes for part in first])
        self.kinds = np.concatenate([part.kinds for part in first])
        self.depth = int(first[0].depth)
        rows = {model: [_places(part, self.names) for part in own] for model, own in parts.items()}
        self.average = dict(zip(self.names, first[0].average[rows[self.models[0]][0]].tolist(), strict=True))
        both = {m: list(zip(own, rows[m], strict=True)) for m, own in parts.items()}
        self._right = {m: np.concatenate([p.right[r] for p, r in own], axis=1) for m, own in both.items()}
        self._evidence = {m: np.concatenate([p.evidence[r] for p, r in own], axis=1) for m, own in both.items()}
        self.choices = [Choice.of(name) for name in self.names]

    def method(self, label: str, budget: int) -> str | None:
        """What a method was called at a budget, or where it takes none; None if it was not asked."""
        names = (choice_name(METHOD, 0, one, label) for one in (budget, 0))
        return next((name for name in names if name in self._place), None)

    def say_left_out(self) -> None:
        """One line to stderr, where there is anything."""
        if self.left_out:
            print(f"left out, not asked of every model: {', '.join(self.left_out)}", file=sys.stderr)

    def percents(self, name: Name, kind: str | None = None) -> list[float]:
        """The share of right answers of each model, to all questions or those of a kind."""
        asked = np.ones(len(self.kinds), bool) if kind is None else self.kinds == kind
        return [100 * float(self._right[model][place][asked].mean()) for model, place in self._rows(name)]

    def percent(self, name: Name, kind: str | None = None) -> float:
        """Their mean."""
        return float(np.mean(self.percents(name, kind)))

    def evidence(self, name: Name) -> float:
        """The share of the tokens that the answers hang on that was kept, in percent, mean of questions and models."""
        found = [np.nanmean(self._evidence[model][place].astype(float)) for model, place in self._rows(name)]
        return 100 * float(np.mean(found))

    def _rows(self, name: Name) -> list[tuple[str, int]]:
        names = [name] * len(self.models) if isinstance(name, str) else name
        return [(model, self._place[one]) for model, one in zip(self.models, names, strict=True)]

    def minus(self, first: Name, second: Name, *, test: bool = True, models: Sequence[str] | None = None) -> Difference:
        """The first minus the second, in points, paired over scenes; of the mean of the models, or of some."""
        kept = set(self.models if models is None else models)
        return difference(self._tally(first, kept), self._tally(second, kept), test=test)

    def own(self, first: Name, second: Name) -> list[Difference]:
        """The same, a model at a time: the spread over seeds."""
        return [self.minus(first, second, test=False, models=[model]) for model in self.models]

    def _tally(self, name: Name, kept: set[str]) -> Tally:
        right = np.mean([self._right[model][place] for model, place in self._rows(name) if model in kept], axis=0)
        images, sums = sum_by_image(np.stack([right, np.ones(len(right))], axis=1), self.scenes.astype(str).tolist())
        return Tally(images, sums, np.arange(len(right)), right, _percent, pool="study", asked="study")


def _asked(study: Study, parts: Sequence[Part], out: Path, model: str) -> list[str]:
    """The choices that a study asks of one model, in its order; parts may know more. `ValueError` of what one lacks."""
    profiles, depth = profile_files(out, model, study), int(parts[0].depth)
    methods, guided = [method_name(one) for one in study.pruners(profiles)], guide_settings(study, profiles)
    places = {(one.start, one.p, one.budget): place for place, one in enumerate(study.drops(depth))}
    found = set()
    for part in parts:
        if agenda := part.agenda(study, depth, profiles):
            lacks = [f"the guides at {one.start}/{one.p}/{one.budget}" for one in agenda.drops]
            lacks += map(method_name, agenda.methods)
            more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
            said = f"a part has not been asked {', '.join(lacks[:3])}{more}"
            raise ValueError(f"{model}: {said}; head_study.equal does that")
        here = part.names[part.settings == guided].tolist()
        guides = [one for one in map(Choice.of, here) if (one.start, one.p, one.budget) in places]
        ordered = sorted(guides, key=lambda one: places[one.start, one.p, one.budget])
        found.add((EVERYTHING, *(one.name for one in ordered), *methods))
    if len(found) > 1:
        raise ValueError(f"{model}: its parts were not measured by the same guides; give the study another folder")
    return list(found.pop())


def _places(part: Part, names: Sequence[str]) -> list[int]:
    place = {name: number for number, name in enumerate(part.names.tolist())}
    return [place[name] for name in names]


def _percent(sums: np.ndarray) -> np.ndarray:
    return 100 * sums[..., 0] / sums[..., 1]


def baseline(budget: int, results: Results) -> str:
    """FastV at a budget: scored by layer 1, or by layer 0 where its full layers would cost more than the budget."""
    name = choice_name(ALL, 1, budget, FASTV)
    return name if name in results.names else choice_name(ALL, 0, budget, FASTV)
