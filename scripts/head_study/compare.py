"""Reading what `run` measured: shares of right answers, and paired differences with errors clustered by scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Paired:
    """First minus second in points: the value, its standard error over scenes, and whether 95 % exclude 0."""

    value: float
    error: float

    @property
    def sure(self) -> bool:
        """Whether the 95 % interval excludes 0."""
        return abs(self.value) > 1.96 * self.error

    def __str__(self) -> str:
        return f"{self.value:+.1f} ± {self.error:.1f}"


class Study:
    """The answers of one model to the questions of one deck, by choice."""

    def __init__(self, folder: Path, deck: str) -> None:
        self.right: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob(f"{deck}-*.npz")):
            self.right |= dict(np.load(file))
        if not self.right:
            raise ValueError(f"folder: {folder} holds no results of the deck {deck!r}; run head_study.run first")
        self.scenes, self.kinds = self.right.pop("scenes"), self.right.pop("kinds")

    def percent(self, name: str) -> float:
        """The share of right answers."""
        return 100 * float(self.right[name].mean())

    def error(self, name: str) -> float:
        """Its standard error: questions about one scene stand and fall together."""
        return clustered_error(100.0 * self.right[name], self.scenes)

    def paired(self, first: str, second: str) -> Paired:
        """The difference of two choices on the same questions."""
        differences = 100.0 * (self.right[first].astype(float) - self.right[second].astype(float))
        return Paired(float(differences.mean()), clustered_error(differences, self.scenes))

    def names(self, *parts: str) -> list[str]:
        """The choices whose name holds all of these parts, each between slashes or at an end."""
        return [name for name in self.right if set(parts) <= set(name.split("/"))]


def clustered_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """The standard error of the mean of `values`, whose `clusters` are drawn independently."""
    names, inverse = np.unique(clusters, return_inverse=True)
    sums = np.bincount(inverse, values - values.mean())
    return float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / len(values))


def over_seeds(differences: list[Paired]) -> str:
    """The mean over models, its standard error from their spread, and each model's own value."""
    values = np.array([difference.value for difference in differences])
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():+.1f} ± {spread:.1f} ({', '.join(f'{value:+.1f}' for value in values)})"
