"""Pictures of a head study: strategies by budget and heads, their ranking, and what consensus selection did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from finepruner_lmms.lazy import np
from finepruner_lmms.output import mathtext
from finepruner_lmms.statistics.differences import Difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Grid = dict[tuple[str, int, Any], float]
"""Scores by (strategy, budget, heads)."""


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _keys(grid: Grid) -> tuple[list[str], list[tuple[int, Any]]]:
    strategies = list(dict.fromkeys(strategy for strategy, _, _ in grid))
    columns = sorted({(budget, heads) for _, budget, heads in grid}, key=lambda c: (-c[0], -_number(c[1])))
    return strategies, columns


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def heat_map(grid: Grid, title: str) -> Figure:
    """Strategy × (budget, heads), the best of each column in bold."""
    strategies, columns = _keys(grid)
    values = np.array([[grid.get((s, *c), np.nan) for c in columns] for s in strategies])
    figure, axes = _axes(3.2 + 0.75 * len(columns), 1.4 + 0.36 * len(strategies))
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    best = np.nanargmax(np.where(np.isnan(values), -np.inf, values), axis=0)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row in range(len(strategies)):
        for column in range(len(columns)):
            if not np.isnan(value := values[row, column]):
                weight = "bold" if best[column] == row else "normal"
                color = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, weight=weight, fontsize=8)
    axes.set_xticks(
        range(len(columns)), [f"{mathtext(budget)}\n{mathtext(heads)} heads" for budget, heads in columns], fontsize=8
    )
    axes.set_yticks(range(len(strategies)), list(map(mathtext, strategies)), fontsize=8)
    axes.set_title(mathtext(title), loc="left", fontsize=10)
    figure.colorbar(image, ax=axes, label="%")
    return figure


def ranking(differences: dict[str, Difference], title: str) -> Figure:
    """Strategies from best to worst: difference to the baseline with its 95 % interval, or hollow without one."""
    order = sorted(differences, key=lambda name: differences[name].value)
    figure, axes = _axes(6.4, 1.0 + 0.32 * len(order))
    for place, name in enumerate(order):
        value, low, high = differences[name].value, differences[name].low, differences[name].high
        if low is None or high is None:
            axes.plot(value, place, "o", color="0.5", fillstyle="none")
            continue
        sure = low > 0 or high < 0
        axes.plot([low, high], [place, place], color="#0072B2" if sure else "0.6", linewidth=2)
        axes.plot(value, place, "o", color="#0072B2" if sure else "0.5")
    axes.axvline(0, color="0.3", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(order)), list(map(mathtext, order)), fontsize=8)
    axes.set_xlabel("points, 95 % interval over images")
    axes.set_title(mathtext(title), loc="left", fontsize=10)
    return figure


def box_plot(grid: Grid, title: str) -> Figure:
    """The spread of each strategy over its budgets and head counts."""
    strategies, _ = _keys(grid)
    groups = [[value for (name, _, _), value in grid.items() if name == strategy] for strategy in strategies]
    figure, axes = _axes(6.4, 1.0 + 0.32 * len(strategies))
    axes.boxplot(groups, orientation="horizontal", tick_labels=list(map(mathtext, strategies)))
    axes.set_xlabel("%")
    axes.set_title(mathtext(title), loc="left", fontsize=10)
    return figure


def lines(grid: Grid, baseline: dict[int, float], title: str) -> Figure:
    """Each strategy against the budget, at its best number of heads, and the baseline."""
    strategies, columns = _keys(grid)
    budgets = sorted({budget for budget, _ in columns})
    figure, axes = _axes(7.2, 3.8)
    for number, strategy in enumerate(strategies):
        best = [
            max((v for (s, b, _), v in grid.items() if (s, b) == (strategy, budget)), default=np.nan)
            for budget in budgets
        ]
        style = ("-", "--", ":")[number // 7 % 3]
        axes.plot(budgets, best, style, marker="o", markersize=4, label=mathtext(strategy), color=f"C{number % 7}")
    if baseline:
        known = sorted(baseline)
        axes.plot(known, [baseline[b] for b in known], "k-", linewidth=2, label="all heads (fastv)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [mathtext(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("budget: visual tokens entering a layer, on average")
    axes.set_ylabel("%")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title(mathtext(title), loc="left", fontsize=10)
    return figure


def alone(places: dict[tuple[int, int], float]) -> Figure:
    """Score by (layer, head)."""
    layers, heads = (sorted({place[axis] for place in places}) for axis in (0, 1))
    values = np.array([[places.get((layer, head), np.nan) for head in heads] for layer in layers])
    figure, axes = _axes(2.4 + 0.3 * len(heads), 1.4 + 0.24 * len(layers))
    image = axes.imshow(values, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(heads)), [str(head) for head in heads], fontsize=8)
    axes.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    axes.set_xlabel("head")
    axes.set_ylabel("layer that scores")
    figure.colorbar(image, ax=axes, label="%")
    return figure


def matrix(values: np.ndarray, names: Sequence[str]) -> Figure:
    """A square table of shares, the same names on both sides."""
    figure, axes = _axes(3.4 + 0.42 * len(names), 2.4 + 0.36 * len(names))
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1)
    for row, column in np.ndindex(values.shape):
        color = "white" if values[row, column] < 0.5 else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(names)), list(map(mathtext, names)), rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), list(map(mathtext, names)), fontsize=8)
    figure.colorbar(image, ax=axes, label="share of heads in common")
    return figure


def frequencies(shares: dict[str, np.ndarray]) -> Figure:
    """How often each head is chosen, one line per row and task."""
    values = np.stack(list(shares.values()))
    figure, axes = _axes(4.2 + 0.22 * values.shape[1], 1.2 + 0.22 * len(shares))
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_yticks(range(len(shares)), list(map(mathtext, shares)), fontsize=7)
    axes.set_xlabel("head")
    figure.colorbar(image, ax=axes, label="share of samples")
    return figure


def qualities(records: Sequence[dict[str, Any]]) -> Figure:
    """The distribution of each strategy's quality."""
    names = [name for name in records[0]["qualities"] if all(name in record["qualities"] for record in records)]
    figure, axes = _axes(6.4, 1.0 + 0.32 * len(names))
    groups = [[record["qualities"][name] for record in records] for name in names]
    axes.boxplot(groups, orientation="horizontal", tick_labels=list(map(mathtext, names)), showfliers=False)
    axes.set_title("quality of the strategies", loc="left", fontsize=10)
    return figure


def trend(values: Iterable[float], label: str, bounds: Sequence[float] = ()) -> Figure:
    """A quantity over the samples, in their order, with a running mean of 25."""
    series = np.array(list(values), dtype=float)
    figure, axes = _axes(7.2, 2.4)
    axes.plot(series, ".", color="0.7", markersize=3)
    window = min(25, len(series))
    axes.plot(
        np.arange(window - 1, len(series)), np.convolve(series, np.ones(window) / window, "valid"), color="#0072B2"
    )
    for bound in bounds:
        axes.axhline(bound, color="0.4", linestyle="--", linewidth=0.8)
    axes.set_xlabel("sample")
    axes.set_title(mathtext(label), loc="left", fontsize=10)
    return figure


def shares(records: Sequence[dict[str, Any]]) -> Figure:
    """How much of the fused score consensus and diversity heads give."""
    figure, axes = _axes(6.4, 2.4)
    axes.hist([record["share_diversity"] for record in records], bins=20, range=(0, 1), color="#D55E00")
    axes.set_xlabel("share of diversity heads in the fused score")
    axes.set_ylabel("samples")
    axes.set_title("consensus and diversity", loc="left", fontsize=10)
    return figure
