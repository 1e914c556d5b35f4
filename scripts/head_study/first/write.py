"""Write the tables and pictures of the first study from what `run` measured on several models.

    python -m head_study.first.write runs/head_study/seed0 … --doc ../docs/appendix/head_study_tables.md

run from `scripts/`. A table goes between `<!-- table NAME -->` and `<!-- end -->` in one of the documents, pictures
into `--pictures`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from finepruner_lmms.heads import NORMALISATIONS
from finepruner_lmms.heads.consensus import PRESETS
from head_study.first import plots
from head_study.first.compare import Models
from head_study.first.run import COMBINATIONS, DEPTHS, LAYER, RETAINED
from head_study.pages import Lines, fill, header, row

FASTV = f"combined/layer={LAYER}/rows=raw/aggregate=mean/kept={{}}"
NORMALISED = f"combined/layer={LAYER}/rows=renormalised/aggregate=mean/kept={{}}"


def strategies_of(models: Models) -> list[str]:
    """The strategies that were measured."""
    names = (part for name in models.find("strategies") for part in name.split("/") if part.startswith("strategy="))
    return sorted({name.partition("=")[2] for name in names})


def strategy_name(strategy: str, normalise: str, count: int, rows: str, aggregate: str, kept: object) -> str:
    """The name that `run` gives the choice."""
    which = f"strategy={strategy}/normalise={normalise}/heads={count}"
    return f"strategies/{which}/rows={rows}/aggregate={aggregate}/kept={kept}"


def combined(test: Models, _tuning: Models) -> Lines:
    """All heads of layer 1, and the bounds."""
    yield from header("guide", *(f"{kept} kept" for kept in RETAINED))
    yield row("everything kept", *[f"{test.percent('vanilla'):.1f}"] * len(RETAINED))
    chance = [sum(test.percent(f"random/seed={seed}/kept={kept}") for seed in range(2)) / 2 for kept in RETAINED]
    yield row("random", *(f"{value:.1f}" for value in chance))
    yield row("FastV: mean of the rows", *(f"{test.percent(FASTV.format(kept)):.1f}" for kept in RETAINED))
    for rows in ("raw", "renormalised"):
        for aggregate in ("mean", "max", "quota"):
            if (rows, aggregate) != ("raw", "mean"):
                name = f"combined/layer={LAYER}/rows={rows}/aggregate={aggregate}/kept={{}}"
                yield row(f"`rows={rows}`, `aggregate={aggregate}`", *_differences(test, name))
    for count in (1, 2, 4):
        yield row(
            f"oracle: {count} heads by their share on objects", *_differences(test, f"oracle/heads={count}/kept={{}}")
        )
    yield row("oracle: the tokens of objects", *_differences(test, "oracle/tokens=objects/kept={}"))
    yield row("oracle: the tokens asked about, then of objects", *_differences(test, "oracle/tokens=subject/kept={}"))


def _differences(models: Models, name: str) -> list[str]:
    return [
        f"{models.percent(name.format(kept)):.1f} ({models.paired(name.format(kept), FASTV.format(kept))})"
        for kept in RETAINED
    ]


def seeds(test: Models, _tuning: Models) -> Lines:
    """What matters, a model a column."""
    yield from header("minus FastV's mean of the rows", *(f"{kept} kept" for kept in RETAINED))
    rows = {
        "random": "random/seed=0/kept={}",
        "max of raw rows": f"combined/layer={LAYER}/rows=raw/aggregate=max/kept={{}}",
        "mean of renormalised rows": NORMALISED,
        "max of renormalised rows": f"combined/layer={LAYER}/rows=renormalised/aggregate=max/kept={{}}",
        "4 of 8 heads by `sum` (upstream's default)": strategy_name("sum", "resoftmax", 4, "raw", "mean", 0)[:-1]
        + "{}",
        "4 of 8 heads by `sparsity`, renormalised": strategy_name("sparsity", "renormalise", 4, "raw", "mean", 0)[:-1]
        + "{}",
        "oracle tokens": "oracle/tokens=objects/kept={}",
    }
    for title, name in rows.items():
        yield row(title, *(test.paired(name.format(kept), FASTV.format(kept)).full for kept in RETAINED))


def kinds(test: Models, _tuning: Models) -> Lines:
    """Where the loss is: by kind of question, 32 kept."""
    guides = ("random", "4 heads by `sum`", "renormalised, mean", "renormalised, max", "oracle: tokens of objects")
    yield from header("questions", "n", "everything kept", "FastV", *guides)
    names = [
        "random/seed=0/kept=32",
        strategy_name("sum", "resoftmax", 4, "raw", "mean", 32),
        NORMALISED.format(32),
        f"combined/layer={LAYER}/rows=renormalised/aggregate=max/kept=32",
        "oracle/tokens=objects/kept=32",
    ]
    for title, group in plots.GROUPS.items():
        part = test.only(np.isin(test.kinds, group))
        cells = [str(part.paired(name, FASTV.format(32))) for name in names]
        shown = (f"{part.percent(name):.1f}" for name in ("vanilla", FASTV.format(32)))
        yield row(title, len(part.scenes), *shown, *cells)


def alone(test: Models, facts: list[dict[str, np.ndarray]]) -> Lines:
    """Each head of layer 1 alone: one column per head, two lines per model."""
    heads = range(facts[0]["mass"].shape[1])
    yield from header("model", "", *(f"head {head}" for head in heads))
    for number, (study, fact) in enumerate(zip(test.studies, facts, strict=True)):
        every = 100 * study.right[FASTV.format(32)]
        cells = [f"{study.percent(f'alone/head={head}/kept=32') - every.mean():+.1f}" for head in heads]
        yield row(number, "alone, 32 kept, minus FastV", *cells)
        yield row("", "attention to the image", *(f"{fact['mass'][LAYER, head]:.2f}" for head in heads))
        yield row("", "share of it on objects", *(f"{fact['share'][LAYER, head]:.2f}" for head in heads))


def strategies(test: Models, _tuning: Models) -> Lines:
    """Every strategy, upstream's formula and renormalised, its rows raw."""
    columns = [(count, kept) for kept in (64, 32) for count in (2, 4)] + [(4, 128), (4, 192)]
    yield from header("strategy", "normalise", *(f"{count} heads, {kept} kept" for count, kept in columns))
    for strategy in strategies_of(test):
        for normalise in NORMALISATIONS:
            names = [(strategy_name(strategy, normalise, c, "raw", "mean", k), FASTV.format(k)) for c, k in columns]
            yield row(f"`{strategy}`", normalise, *(_bold(test.paired(*pair)) for pair in names))
    for preset in PRESETS:
        cells = [
            _bold(test.paired(f"consensus/preset={preset}/kept={kept}", FASTV.format(kept))) if count == 4 else ""
            for count, kept in columns
        ]
        yield row(f"consensus, `{preset}`", "", *cells)


def _bold(paired) -> str:
    return f"**{paired}**" if paired.sure and paired.value > 0 else str(paired)


def normalised(test: Models, _tuning: Models) -> Lines:
    """Does choosing heads add anything with per-head normalisation? Against all heads, renormalised, mean."""
    columns = [(count, kept) for kept in (64, 32) for count in (2, 4)]
    yield from header("strategy", "normalise", *(f"{count} heads, {kept} kept" for count, kept in columns))
    for strategy in strategies_of(test):
        for normalise in NORMALISATIONS:
            names = [
                (strategy_name(strategy, normalise, count, "renormalised", "mean", kept), NORMALISED.format(kept))
                for count, kept in columns
            ]
            yield row(f"`{strategy}`", normalise, *(_bold(test.paired(*pair)) for pair in names))


def picked(test: Models, tuning: Models) -> Lines:
    """The best choice on the tuning split, a model of its own, and what it is worth on the test split."""
    yield from header("picked among", "kept", "tuning", "test", "what was picked, one per model")
    kinds: dict[str, Callable[[str], bool]] = {
        "heads, raw rows (upstream's formulas)": lambda n: "rows=raw" in n and "normalise=resoftmax" in n,
        "heads, raw rows (both normalisations)": lambda n: "rows=raw" in n,
        "heads, any rows": lambda n: True,
    }
    for title, wanted in kinds.items():
        for kept in (64, 32):
            names = [n for n in tuning.find("strategies", f"kept={kept}") if wanted(n) and n in test.names]
            best = [max(names, key=lambda n, s=study: s.percent(n)) for study in tuning.studies]
            short = "; ".join(_short(name) for name in best)
            yield row(
                title,
                kept,
                tuning.paired(best, FASTV.format(kept)).full,
                test.paired(best, FASTV.format(kept)).full,
                short,
            )
    for kept in (64, 32):
        names = NORMALISED.format(kept), FASTV.format(kept)
        title = "no choice: all heads, renormalised rows, mean"
        yield row(title, kept, tuning.paired(*names).full, test.paired(*names).full, "")


def _short(name: str) -> str:
    parts = dict(part.split("=") for part in name.split("/") if "=" in part)
    return f"{parts['strategy']} {parts['normalise']}, {parts['heads']}, {parts['rows']} {parts['aggregate']}"


def depth(layers: Models) -> Lines:
    """FastV at layer K at an equal budget."""
    yield from header("budget", "layer K", "mean of raw rows", *(f"{rows} {agg}" for rows, agg in COMBINATIONS[1:]))
    for budget, places in DEPTHS.items():
        for place in places:
            base, *others = (
                f"depth/budget={budget}/layer={place}/rows={rows}/aggregate={agg}" for rows, agg in COMBINATIONS
            )
            cells = [f"{layers.percent(name):.1f} ({layers.paired(name, base)})" for name in others]
            yield row(budget, place, f"{layers.percent(base):.1f}", *cells)


TABLES = {
    "combined": combined,
    "seeds": seeds,
    "kinds": kinds,
    "strategies": strategies,
    "normalised": normalised,
    "picked": picked,
}


def main() -> None:
    """Fill the documents and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--doc", type=Path, required=True, nargs="+")
    parser.add_argument("--pictures", type=Path, default=Path("../docs/head_study"))
    arguments = parser.parse_args()
    test, tuning = Models(arguments.folders, "test"), Models(arguments.folders, "tuning")
    layers = Models(arguments.folders, "layers")
    tables = {name: list(table(test, tuning)) for name, table in TABLES.items()}
    facts = [dict(np.load(folder / "heads.facts.npz")) for folder in arguments.folders]
    tables |= {"depth": list(depth(layers)), "alone": list(alone(test, facts))}
    filled = fill([doc.read_text(encoding="utf-8") for doc in arguments.doc], tables)
    for doc, text in zip(arguments.doc, filled, strict=True):
        doc.write_text(text, encoding="utf-8")
    arguments.pictures.mkdir(exist_ok=True)
    for line in plots.draw(test, Models(arguments.folders, "heads"), layers, facts, arguments.pictures):
        print(line)


if __name__ == "__main__":
    main()
