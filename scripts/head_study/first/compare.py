"""Reading what `run` measured: shares of right answers, and paired differences with errors clustered by scene."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Paired:
    """First minus second in points: the value, its standard error over scenes, and each model's own value."""

    value: float
    error: float
    models: tuple[float, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return abs(self.value) > 1.96 * self.error

    @property
    def spread(self) -> float:
        """The standard error of the mean over models, from how far they differ."""
        return float(np.std(self.models, ddof=1) / np.sqrt(len(self.models))) if len(self.models) > 1 else float("nan")

    def __str__(self) -> str:
        return f"{self.value:+.1f} ± {self.error:.1f}"

    @property
    def full(self) -> str:
        """With the models' own values behind it."""
        return f"{self} ({', '.join(f'{value:+.1f}' for value in self.models)})"


class Study:
    """The answers of one model to the questions of one deck, by choice."""

    def __init__(self, folder: Path, deck: str) -> None:
        self.right: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob(f"{deck}-*.npz")):
            self.right |= dict(np.load(file))
        if not self.right:
            raise ValueError(f"folder: {folder} holds no results of the deck {deck!r}; run head_study.first.run first")
        self.scenes, self.kinds = self.right.pop("scenes"), self.right.pop("kinds")

    def percent(self, name: str) -> float:
        """The share of right answers."""
        return 100 * float(self.right[name].mean())


class Models:
    """The same deck, answered by several models."""

    def __init__(self, folders: list[Path], deck: str) -> None:
        self.studies = [Study(folder, deck) for folder in folders]
        self.scenes, self.kinds = self.studies[0].scenes, self.studies[0].kinds
        if any(not np.array_equal(study.scenes, self.scenes) for study in self.studies):
            raise ValueError(f"folders: the models were not asked about the same scenes in deck {deck!r}")
        self.names = [name for name in self.studies[0].right if all(name in study.right for study in self.studies)]

    def only(self, chosen: np.ndarray) -> Models:
        """The same of the questions `chosen`, a mask."""
        part = copy.copy(self)
        part.scenes, part.kinds = self.scenes[chosen], self.kinds[chosen]
        part.studies = [copy.copy(study) for study in self.studies]
        for study in part.studies:
            study.right = {name: right[chosen] for name, right in study.right.items()}
        return part

    def percents(self, name: str) -> np.ndarray:
        """The share of right answers of each model."""
        return np.array([study.percent(name) for study in self.studies])

    def percent(self, name: str) -> float:
        """Their mean."""
        return float(self.percents(name).mean())

    def paired(self, first: str | list[str], second: str | list[str]) -> Paired:
        """The difference of two choices on the same questions, averaged over the models; a list names one per model."""
        differences = []
        for place, study in enumerate(self.studies):
            a, b = (name if isinstance(name, str) else name[place] for name in (first, second))
            differences.append(100.0 * (study.right[a].astype(float) - study.right[b].astype(float)))
        # questions about one scene stand and fall together, in all models
        error = clustered_error(np.mean(differences, axis=0), self.scenes)
        values = tuple(float(difference.mean()) for difference in differences)
        return Paired(float(np.mean(values)), error, values)

    def find(self, *parts: str) -> list[str]:
        """The choices whose name holds all of these parts, each between slashes or at an end."""
        return [name for name in self.names if set(parts) <= set(name.split("/"))]


def clustered_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """The standard error of the mean of `values`, whose `clusters` are drawn independently."""
    names, inverse = np.unique(clusters, return_inverse=True)
    sums = np.bincount(inverse, values - values.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(values))
