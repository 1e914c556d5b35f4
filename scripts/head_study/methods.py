"""Methods alone, beside everything kept: `python -m head_study.methods STUDY.yaml --out FOLDER --doc PAGE.md`.

Fills the tables `methods`, `models` and `versus` of a page that marks their places, and draws the picture that has its
name. Run from `scripts/` after `head_study.equal`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from finepruner_lmms.statistics.differences import Difference
from finepruner_lmms.statistics.families import holm
from head_study.guides import FASTV, ORACLE
from head_study.pages import fill, header, row, signed
from head_study.parts import EVERYTHING, METHOD, choice_name
from head_study.results import Results, baseline
from head_study.study import ALL, Study, read_study

mpl.use("Agg")
_FASTV, _OURS = "fastv", "visualheads"
_SHOWN = (
    _FASTV,
    "pdrop",
    "sparsevlm",
    "priortr",
    "mmtok+coreprune",
    "vscan",
    "tops",
    "mmtok",
    "scope",
    "mmtok+random_tail tail=0.25",
)
_NORMAL = 1.96
_FIRST = re.compile(r" first=\S+")
_LEAST = 0.001
"""Draws tell a p from 0 down to one in 100,000 for each comparison of a family, so that less is not compared."""


def named(results: Results, budget: int) -> dict[str, list[str]]:
    """The choices of each row of the table at a budget; a row of several seeds has several."""
    base, early = baseline(budget, results), choice_name(ALL, 0, budget, FASTV)
    found = {}
    if base in results.names:  # of the study's own budgets, which have guides
        found = {_FASTV: [base], "oracle: the tokens asked about": [base.replace(FASTV, ORACLE)]}
    if early in results.names and early != base:
        found["fastv layer=1"] = [early]
    for one in results.choices:
        if one.start == METHOD and one.budget in (budget, 0):  # 0: takes none
            label = "random" if one.guide.startswith("random ") else _label(results, one.guide)
            found.setdefault(label, []).append(one.name)
    return found


def _label(results: Results, guide: str) -> str:
    """A method without the `first` of a chain, which goes with its budget; with it where a budget has several."""
    bare = _FIRST.sub("", guide)
    budgets = [one.budget for one in results.choices if one.start == METHOD and _FIRST.sub("", one.guide) == bare]
    return bare if len(set(budgets)) == len(budgets) else guide


def mean(results: Results, names: Sequence[str]) -> tuple[float, float]:
    """Right answers and evidence kept, in percent."""
    right = float(np.mean([results.percent(name) for name in names]))
    return right, float(np.mean([results.evidence(name) for name in names]))


def table(results: Results, budgets: Sequence[int]) -> Iterator[str]:
    """Right answers, what that is of everything kept, and the evidence kept; the best at the first budget first.

    Budgets that some methods alone were asked at have a column, too.
    """
    whole = results.percent(EVERYTHING)
    asked = {one.budget for one in results.choices if one.start == METHOD} - {0, *budgets}
    rows = {budget: named(results, budget) for budget in (*budgets, *sorted(asked))}
    columns = sorted(rows, reverse=True)
    yield from header("method", *(f"{budget} tokens" for budget in columns))
    yield row("everything kept", *[f"{whole:.1f}"] * len(columns))
    for label in _by_score(results, rows):
        cells = []
        for budget in columns:
            right, kept = mean(results, rows[budget][label]) if label in rows[budget] else (np.nan, np.nan)
            cells.append("" if np.isnan(right) else f"{right:.1f}, {100 * right / whole:.0f} % ({kept:.0f} %)")
        yield row(f"`{label}`" if ":" not in label else label, *cells)


def _by_score(results: Results, rows: Mapping[int, Mapping[str, Sequence[str]]]) -> list[str]:
    """The labels of all budgets, best first by the first budget; those that it has not come last, by the next."""
    found: list[str] = []
    for own in rows.values():
        found += sorted(set(own) - set(found), key=lambda label: (-mean(results, own[label])[0], label))
    return found


def models(results: Results, budgets: Sequence[int]) -> Iterator[str]:
    """Of each model by itself, right answers of everything kept, and `visualheads` minus `fastv`, 95 % intervals."""
    rows = {budget: named(results, budget) for budget in budgets}
    asked = [budget for budget in budgets if _OURS in rows[budget]]
    whole = results.percents(EVERYTHING)
    own = [results.own(rows[budget][_OURS][0], rows[budget][_FASTV][0]) for budget in asked]
    yield from header("model", "everything kept", *(f"`{_OURS}` minus `fastv`, {budget} tokens" for budget in asked))
    for place, model in enumerate(results.models):
        yield row(f"`{model}`", f"{whole[place]:.1f}", *(_interval(column[place]) for column in own))


def _interval(one: Difference) -> str:
    ends = "" if one.low is None or one.high is None else f" [{signed(one.low)}, {signed(one.high)}]"
    return f"{signed(one.value)}{ends}"


def versus(results: Results, budgets: Sequence[int]) -> Iterator[str]:
    """`visualheads` minus other methods, in points, ± one standard error, each model's own value in brackets, with p
    after Holm over the table."""
    found = {}
    for budget in budgets:
        rows = named(results, budget)
        for other in (one for one in _SHOWN if one in rows and _OURS in rows):
            pair = rows[_OURS][0], rows[other][0]
            found[other, budget] = results.minus(*pair), results.own(*pair)
    adjusted = iter(holm([one.p for one, _ in found.values() if one.p is not None]))
    cells = {}
    for key, (one, own) in found.items():
        p = "" if one.p is None else _chance(next(adjusted))
        each = ", ".join(map(signed, (model.value for model in own)))
        error = "" if one.error is None else f" ± {one.error:.1f}"
        cells[key] = f"{signed(one.value)}{error} ({each}){p}"
    yield from header(f"`{_OURS}` minus", *(f"{budget} tokens" for budget in budgets))
    for other in dict.fromkeys(other for other, _ in found):
        yield row(f"`{other}`", *(cells.get((other, budget), "") for budget in budgets))


def _chance(p: float) -> str:
    return f", p < {_LEAST}" if p < _LEAST else f", p {p:.2g}"


TABLES = {"methods": table, "models": models, "versus": versus}


def draw(results: Results, budgets: Sequence[int], file: Path) -> None:
    """Right answers of every method at each budget, with the 95 % interval of the difference to everything kept."""
    whole = results.percent(EVERYTHING)
    rows = {budget: named(results, budget) for budget in budgets}
    labels = _by_score(results, rows)[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.27 * len(labels) + 1.2), constrained_layout=True)
    for budget, color, shift in zip(budgets, ("#0b6e99", "#d9730d"), (0.14, -0.14), strict=False):
        for place, label in enumerate(labels):
            if names := rows[budget].get(label):
                value = 100 * mean(results, names)[0] / whole
                error = results.minus(names[0], EVERYTHING, test=False).error or 0
                wide = 100 * _NORMAL * error / whole
                axes.errorbar(value, place + shift, xerr=wide, fmt="o", color=color, ms=4, lw=1.2,
                              label=f"{budget} tokens" if label == labels[-1] else None)  # fmt: skip
    axes.axvline(100, color="#999", lw=0.8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("right answers, in percent of those with all 576 tokens")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Fill the page and draw its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--doc", type=Path, required=True)
    arguments = parser.parse_args()
    study: Study = read_study(arguments.study)
    results = Results(study, arguments.out, "test")
    results.say_left_out()
    tables = {name: list(made(results, study.budgets)) for name, made in TABLES.items()}
    text = fill([arguments.doc.read_text(encoding="utf-8")], tables)[0]
    arguments.doc.write_text(text, encoding="utf-8")
    draw(results, study.budgets, arguments.doc.with_suffix(".png"))


if __name__ == "__main__":
    main()
