"""The pictures of a study of guides at equal budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from head_study.first.plots import COLORS
from head_study.guides import FASTV, ORACLE
from head_study.parts import EVERYTHING, METHOD, choice_name
from head_study.results import Choice, Results, baseline
from head_study.study import Study

NORMALISED = "all heads: renormalised, max"


def draw(test: Results, study: Study, folder: Path) -> None:
    """Scoring layers and budgets, each against how much evidence is kept."""
    folder.mkdir(exist_ok=True)
    _layers(test, study, folder / "equal_layers.png")
    _budgets(test, study, folder / "equal_budgets.png")


def _chance(test: Results, one: Choice) -> list[str]:
    return [c.name for c in test.choices
            if (c.start, c.p, c.budget) == (one.start, one.p, one.budget) and c.guide.startswith("random")]  # fmt: skip


def _band(axes: plt.Axes, places: Sequence[int], draws: Sequence[Sequence[float]]) -> None:
    """Random choice: from the least to the most of its seeds, and their mean."""
    low, high = [min(values) for values in draws], [max(values) for values in draws]
    axes.fill_between(places, low, high, color=COLORS["random"], alpha=0.3, linewidth=0)
    axes.plot(places, [np.mean(values) for values in draws], color=COLORS["random"], label="random, band: its seeds")


def _layers(test: Results, study: Study, file: Path) -> None:
    """A row a budget: right answers, and the evidence kept, by the layer that scores."""
    lines = {
        "known tokens": (ORACLE, COLORS["oracle"]),
        f"{study.strategies.heads[-1]} heads, known tokens": (f"oracle: {study.strategies.heads[-1]} heads", "#CC79A7"),
        "normalised, max": (NORMALISED, COLORS["max"]),
        f"profile {study.profiles[0]}": (f"profile {study.profiles[0]}", COLORS["equal"]),
        "mean of the rows": (FASTV, COLORS["fastv"]),
    }
    shape = len(study.budgets), 2
    figure, grid = plt.subplots(*shape, figsize=(9.4, 2.3 * shape[0] + 0.5), layout="constrained", sharex=True)
    for budget, (right, kept) in zip(study.budgets, np.atleast_2d(grid), strict=True):
        for axes, of in ((right, test.percent), (kept, test.evidence)):
            axes.spines[["top", "right"]].set_visible(False)
            here = [Choice(study.first, p, budget, FASTV) for p in study.layers]
            _band(axes, study.layers, [[of(name) for name in _chance(test, one)] for one in here])
            for label, (guide, color) in lines.items():
                names = {p: choice_name(study.first, p, budget, guide) for p in study.layers}
                found = {p: of(name) for p, name in names.items() if name in test.names}
                axes.plot(list(found), list(found.values()), "o-", color=color, markersize=3, label=label)
        right.set_ylabel(f"budget {budget}\nright answers, %")
        kept.set_ylabel("evidence kept, %")
    for axes in np.atleast_2d(grid)[-1]:
        axes.set_xlabel(f"scoring layer, behind {study.first}")
    np.atleast_2d(grid)[0, 1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _budgets(test: Results, study: Study, file: Path) -> None:
    """FastV, its rows normalised, the registered methods and the bound, over the budgets."""
    figure, axes = plt.subplots(figsize=(7.6, 3.8), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    everything = test.percent(EVERYTHING)
    axes.axhline(everything, color="0.5", linewidth=0.8, linestyle=":", label="everything kept")
    bases = [Choice.of(baseline(budget, test)) for budget in study.budgets]
    _band(axes, study.budgets, [[test.percent(name) for name in _chance(test, base)] for base in bases])
    guides = {"known tokens": (ORACLE, "oracle"), "normalised, max": (NORMALISED, "max"), "FastV": (FASTV, "fastv")}
    for label, (guide, color) in guides.items():
        values = [test.percent(choice_name(base.start, base.p, base.budget, guide)) for base in bases]
        axes.plot(study.budgets, values, "o-", color=COLORS[color], markersize=4, label=label)
    labels = dict.fromkeys(one.guide for one in test.choices if one.start == METHOD)
    for number, label in enumerate(one for one in labels if not one.startswith("random")):
        names = {budget: test.method(label, budget) for budget in study.budgets}
        found = {budget: test.percent(name) for budget, name in names.items() if name is not None}
        look = {"color": f"C{number % 10}", "markersize": 3, "linewidth": 0.8}
        if found:
            axes.plot(list(found), list(found.values()), "s--", label=label, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(study.budgets, [str(budget) for budget in study.budgets])
    axes.minorticks_off()
    axes.set_xlabel("budget: visual tokens entering a layer, mean over the layers")
    axes.set_ylabel("right answers, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file, dpi=110)
    plt.close(figure)
