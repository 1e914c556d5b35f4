"""The pictures of docs/head_study.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from head_study.facts import CHOICES
from head_study.first.compare import Models, Study
from head_study.first.run import LAYER, RETAINED

COLORS = {"fastv": "#D55E00", "equal": "#0072B2", "max": "#56B4E9", "oracle": "#009E73", "random": "0.6"}
GROUPS = {
    "existence": ("exist",),
    "attribute": ("color", "shape", "verify", "pick"),
    "number": ("count", "number"),
    "reading": ("digit", "read"),
    "choice": ("choice", "choice_zh"),
}
"""Kinds of questions, as the benchmarks ask them."""


def draw(
    test: Models, alone: Models, layers: Models, facts: list[dict[str, np.ndarray]], folder: Path
) -> Iterator[str]:
    """Write every picture; what it says in numbers, a line each."""
    _budgets(test, folder / "budgets.png")
    yield from _layers(layers, folder / "layers.png")
    usefulness = [useful(study) for study in alone.studies]
    _heads(usefulness, folder / "heads.png")
    yield from _mass(usefulness, facts, folder / "mass.png")
    yield from _stability(test, folder / "stability.png")
    yield from _agreement(facts, folder / "agreement.png")


def useful(study: Study, chosen: np.ndarray | None = None) -> np.ndarray:
    """`[layers, H]`: the share of right answers with each head alone as the guide, of the questions `chosen`."""
    places = [
        tuple(int(part.split("=")[1]) for part in n.split("/")[1:3]) for n in study.right if n.startswith("heads/")
    ]
    layers, heads = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    values = np.zeros((layers, heads))
    for layer, head in places:
        right = study.right[f"heads/layer={layer}/head={head}/kept=64"]
        values[layer, head] = 100 * right[slice(None) if chosen is None else chosen].mean()
    return values


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation; 0 where all values of one are the same."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def _save(figure: plt.Figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _plain(axes: plt.Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _budgets(test: Models, file: Path) -> None:
    lines = {
        "oracle: tokens of objects": ("oracle/tokens=objects/kept={}", "oracle"),
        "all heads, normalised, max": (f"combined/layer={LAYER}/rows=renormalised/aggregate=max/kept={{}}", "max"),
        "all heads, normalised, mean": (f"combined/layer={LAYER}/rows=renormalised/aggregate=mean/kept={{}}", "equal"),
        "FastV: all heads, raw, mean": (f"combined/layer={LAYER}/rows=raw/aggregate=mean/kept={{}}", "fastv"),
        "random": ("random/seed=0/kept={}", "random"),
    }
    figure, axes = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
    _plain(axes)
    vanilla = test.percents("vanilla")
    axes.axhspan(vanilla.min(), vanilla.max(), color="0.92", label="everything kept")
    for label, (name, color) in lines.items():
        values = np.stack([test.percents(name.format(kept)) for kept in RETAINED])
        axes.fill_between(RETAINED, values.min(1), values.max(1), color=COLORS[color], alpha=0.15, linewidth=0)
        axes.plot(RETAINED, values.mean(1), "o-", color=COLORS[color], label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(RETAINED, [str(kept) for kept in RETAINED])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept from layer 2 on, of 576")
    axes.set_ylabel("right answers, %")
    axes.set_title(f"mean of {len(test.studies)} models, band: their range", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, file)


def _layers(layers: Models, file: Path) -> Iterator[str]:
    depth = 1 + max(int(name.split("/")[1].partition("=")[2]) for name in layers.find("layers"))
    figure, axes = plt.subplots(figsize=(8.2, 3.6), layout="constrained")
    _plain(axes)
    kinds = {
        "two best heads, known objects": ("oracle-heads=2", "oracle"),
        "normalised, mean": ("rows=renormalised/aggregate=mean", "equal"),
        "raw, mean (FastV)": ("rows=raw/aggregate=mean", "fastv"),
    }
    for label, (middle, color) in kinds.items():
        values = np.stack([layers.percents(f"layers/layer={layer}/{middle}/kept=64") for layer in range(depth)])
        axes.plot(values, color=COLORS[color], alpha=0.25, linewidth=0.8)
        axes.plot(values.mean(1), "o-", color=COLORS[color], markersize=3, label=label)
        best = int(values.mean(1).argmax())
        shown = f"layer 1 {values[1].mean():.1f}, best layer {best} {values[best].mean():.1f}"
        yield f"layers, 64 kept, {label}: {shown}, median {np.median(values.mean(1)):.1f}"
    axes.set_xlabel("layer whose attention scores the tokens (dropped before layer 2 in every case)")
    axes.set_ylabel("right answers, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, file)


def _heads(usefulness: list[np.ndarray], file: Path) -> None:
    low, high = min(v.min() for v in usefulness), max(v.max() for v in usefulness)
    figure, axes = plt.subplots(1, len(usefulness), figsize=(2.2 * len(usefulness) + 1, 6), layout="constrained")
    for number, (values, ax) in enumerate(zip(usefulness, np.atleast_1d(axes), strict=True)):
        image = ax.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high)
        ax.set_title(f"model {number}", loc="left", fontsize=10)
        ax.set_xlabel("head")
        ax.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="right answers with this head alone as the guide, 64 kept, %")
    _save(figure, file)


def _mass(usefulness, facts, file: Path) -> Iterator[str]:
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.4), layout="constrained", sharey=True)
    for key, ax, text in (
        ("mass", axes[0], "attention to the image"),
        ("share", axes[1], "share of it on objects"),
    ):
        within = []
        for number, (values, fact) in enumerate(zip(usefulness, facts, strict=True)):
            ax.plot(fact[key].ravel(), values.ravel(), ".", color=f"C{number}", markersize=3, alpha=0.4)
            ax.plot(
                fact[key][LAYER],
                values[LAYER],
                "o",
                color=f"C{number}",
                markersize=6,
                label=f"model {number}, layer {LAYER}",
            )
            within.append((spearman(fact[key], values), spearman(fact[key][LAYER], values[LAYER])))
        shown = ", ".join(f"{all_:+.2f}" for all_, _ in within)
        near = ", ".join(f"{one:+.2f}" for _, one in within)
        yield f"heads, {text} against usefulness, rank correlation: all layers {shown}; layer {LAYER} {near}"
        ax.set_xlabel(text)
        _plain(ax)
    axes[0].set_ylabel("right answers, this head alone, %")
    axes[1].legend(frameon=False, fontsize=8)
    _save(figure, file)


def _stability(test: Models, file: Path) -> Iterator[str]:
    """How much parts of the questions agree about which heads of one layer are useful."""
    halves = {"even scenes": test.scenes % 2 == 0, "odd scenes": test.scenes % 2 == 1}
    kinds = {name: np.isin(test.kinds, group) for name, group in GROUPS.items()}
    parts = [test.only(chosen) for chosen in (halves | kinds).values()]
    table = np.zeros((len(parts), len(parts)))
    for place in range(len(test.studies)):
        maps = [
            np.array([part.studies[place].percent(name) for name in test.find("alone", "kept=32")]) for part in parts
        ]
        table += [[spearman(a, b) for b in maps] for a in maps]
    table /= len(test.studies)
    _matrix(table, [*halves, *kinds], f"rank correlation of the usefulness of layer {LAYER}'s heads", file, size=4.4)
    yield f"layer {LAYER}, usefulness on two halves of the scenes: rank correlation {table[0, 1]:.2f}"
    off = table[2:, 2:][~np.eye(len(kinds), dtype=bool)]
    yield f"kinds of questions: rank correlation {off.min():.2f} to {off.max():.2f}, mean {off.mean():.2f}"


def _agreement(facts, file: Path) -> Iterator[str]:
    table = np.mean([fact["agreement"] for fact in facts], axis=0)
    names = [f"{strategy}{'' if normalise == 'resoftmax' else ' (renorm.)'}" for strategy, normalise in CHOICES]
    # what ranks by the attention itself is the same under both normalisations
    keep = [i for i in range(len(names)) if not (i % 2 and table[i, i - 1] > 0.999)]
    table, names = table[np.ix_(keep, keep)], [names[i] for i in keep]
    _matrix(table, names, f"share of heads in common, half of the heads of layer {LAYER}", file, size=8)
    off = table[~np.eye(len(names), dtype=bool)]
    yield f"agreement of strategies: {off.min():.2f} to {off.max():.2f}, mean {off.mean():.2f} (chance 0.50)"


def _matrix(table: np.ndarray, names: list[str], title: str, file: Path, size: float) -> None:
    figure, axes = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    image = axes.imshow(table, cmap="viridis", vmin=min(0.0, table.min()), vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            color = "black" if table[i, j] > 0.6 else "white"
            axes.text(j, i, f"{table[i, j]:.2f}".replace("0.", "."), ha="center", va="center", fontsize=6, color=color)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(title, loc="left", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    _save(figure, file)
