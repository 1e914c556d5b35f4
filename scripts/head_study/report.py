"""Write the tables and pictures of a study of guides at equal budgets into documents that mark their places.

    python -m head_study.report STUDY.yaml --out FOLDER --doc ../docs/head_study.md ../docs/appendix/head_study_equal.md

run from `scripts/`; without documents they are printed. A table goes between `<!-- table NAME -->` and `<!-- end -->`,
pictures into the folder beside the first document that has its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finepruner_lmms.files import load_object
from finepruner_lmms.statistics.differences import Difference
from finepruner_lmms.statistics.families import holm
from finepruner_lmms.statistics.power import detectable_by_error
from head_study import equal_plots
from head_study.equal import profile_file
from head_study.guides import FASTV, ORACLE
from head_study.pages import fill, header, row, signed
from head_study.parts import EVERYTHING, METHOD, choice_name
from head_study.published_order import agreement, ours, published
from head_study.results import Choice, Results, baseline
from head_study.study import ALL, Drop, Study, read_study

Lines = Iterator[str]
NORMALISED = "all heads: renormalised, max"
_LEVEL = 0.05


@dataclass(frozen=True)
class Both:
    """A study with its answers: on what choices are picked from, and on what they are reported by."""

    study: Study
    out: Path
    tuning: Results
    test: Results


def shown(found: Difference, own: Sequence[Difference] = ()) -> str:
    """A difference with its standard error, and each model's own value where there are several."""
    error = "" if found.error is None else f" ± {found.error:.1f}"
    models = f" ({', '.join(signed(one.value) for one in own)})" if len(own) > 1 else ""
    return f"{signed(found.value)}{error}{models}"


def _full(results: Results, first: str | list[str], second: str | list[str]) -> str:
    return shown(results.minus(first, second, test=False), results.own(first, second))


def _score(results: Results, name: str | list[str]) -> str:
    return f"{results.percent(name):.1f} ({results.evidence(name):.0f} %)"


def _chance(results: Results, start: str, p: int, budget: int) -> list[str]:
    """The draws of a drop."""
    return [one.name for one in results.choices
            if (one.start, one.p, one.budget) == (start, p, budget) and one.guide.startswith("random")]  # fmt: skip


def _band(results: Results, names: Sequence[str]) -> str:
    if not names:
        return ""
    values, kept = [results.percent(name) for name in names], [results.evidence(name) for name in names]
    return f"{np.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}] ({np.mean(kept):.0f} %)"


def budgets(both: Both) -> Lines:
    """What each budget costs: chance, FastV, the normalised rows, the methods asked for, and the bound."""
    test, found = both.test, both.study.budgets
    yield from header("right answers (evidence kept)", *(f"budget {budget}" for budget in found))
    yield row("everything kept", *[f"{test.percent(EVERYTHING):.1f}"] * len(found))
    bases = [Choice.of(baseline(budget, test)) for budget in found]
    yield row("random at FastV's drop", *(_band(test, _chance(test, b.start, b.p, b.budget)) for b in bases))
    yield row("FastV: mean of the rows", *(_score(test, base.name) for base in bases))
    named = {"normalised rows, maximum": NORMALISED, "oracle: the tokens asked about": ORACLE}
    for title, guide in named.items():
        yield row(title, *(_score(test, choice_name(b.start, b.p, b.budget, guide)) for b in bases))
    labels = list(dict.fromkeys(one.guide for one in test.choices if one.start == METHOD))
    if draws := [label for label in labels if label.partition(" ")[0] == "random"]:
        cells = ([choice_name(METHOD, 0, budget, label) for label in draws] for budget in found)
        yield row("random before the model", *(_band(test, [n for n in names if n in test.names]) for names in cells))
    for label in (one for one in labels if one not in draws):
        names = [test.method(label, budget) for budget in found]
        if any(names):
            yield row(f"`{label}`", *("" if name is None else _score(test, name) for name in names))


def methods(both: Both) -> Lines:
    """The registered methods, minus FastV at the same budget."""
    test, found = both.test, both.study.budgets
    yield from header("minus FastV", *(f"budget {budget}" for budget in found))
    for label in dict.fromkeys(one.guide for one in test.choices if one.start == METHOD):
        names = {budget: test.method(label, budget) for budget in found}
        if any(names.values()):
            cells = ["" if name is None else _full(test, name, baseline(b, test)) for b, name in names.items()]
            yield row(f"`{label}`", *cells)


def layers(both: Both) -> Lines:
    """Scoring layers behind the first stage, at an equal average: what each guide adds to FastV's rule there."""
    test, profile = both.test, f"profile {both.study.profiles[0]}"
    guides = {
        "normalised, max": NORMALISED,
        "profile": profile,
        "profile, layers up to it": f"{profile}, layers up to it",
        "oracle heads": f"oracle: {both.study.strategies.heads[-1]} heads",
        "oracle tokens": ORACLE,
    }
    yield from header("budget", "layer", "tokens", "random", "mean of the rows", *guides, "minus FastV")
    for drop in _drops(both):
        if drop.start != ALL:
            here = choice_name(drop.start, drop.p, drop.budget, FASTV)
            cells = []
            for guide in guides.values():
                name = choice_name(drop.start, drop.p, drop.budget, guide)
                cells.append(f"{shown(test.minus(name, here, test=False))} ({test.evidence(name):.0f} %)"
                             if name in test.names else "")  # fmt: skip
            chance = _band(test, _chance(test, drop.start, drop.p, drop.budget))
            against = _full(test, here, baseline(drop.budget, test))
            sizes = f"{drop.first}, {drop.retained}"
            yield row(drop.budget, drop.p, sizes, chance, _score(test, here), *cells, against)


def _drops(both: Both) -> list[Drop]:
    found = {(one.start, one.p, one.budget) for one in both.test.choices}
    drops = both.study.drops(both.test.depth)
    return [drop for drop in drops if (drop.start, drop.p, drop.budget) in found]


def strategies(both: Both) -> Lines:
    """Every choice of heads against all heads at the same drop, mean of its drops, and the best after Holm."""
    test = both.test
    for budget in both.study.budgets:
        those = [one for one in test.choices if one.candidate and one.budget == budget]
        found = [test.minus(one.name, one.same_drop) for one in those]
        tested = [(one, diff) for one, diff in zip(those, found, strict=True) if diff.p is not None]
        adjusted = holm([diff.p for _, diff in tested if diff.p is not None])
        better = sum(p < _LEVEL and diff.value > 0 for (_, diff), p in zip(tested, adjusted, strict=True))
        worse = sum(p < _LEVEL and diff.value < 0 for (_, diff), p in zip(tested, adjusted, strict=True))
        count = f"{len(tested)} choices, {better} better and {worse} worse than all heads' mean after Holm"
        seen = [diff.error for _, diff in tested if diff.error is not None]
        least = (
            f"; of half of them, {detectable_by_error(float(np.median(seen))):.1f} points would be found"
            if seen
            else ""
        )
        yield f"\n**Budget {budget}**: {count}{least} (80 % power, before Holm).\n"
        yield from header("choice", "layer", "enters", "right (evidence)", "minus all heads' mean", "adjusted p")
        order = sorted(range(len(tested)), key=lambda place: -tested[place][1].value)
        for place in order[:_SHOWN]:
            (one, diff), p = tested[place], adjusted[place]
            yield row(one.guide, one.p, one.start, _score(test, one.name),
                      shown(diff, test.own(one.name, one.same_drop)), f"{p:.2g}")  # fmt: skip


_SHOWN = 8


def families(both: Both) -> Lines:
    """Each strategy, its difference to all heads at the same drop averaged over drops and numbers of heads."""
    test = both.test
    budgets_ = both.study.budgets
    yield from header("heads chosen by", *(f"budget {budget}" for budget in budgets_))
    kinds: dict[str, list[Choice]] = {}
    for one in test.choices:
        if one.candidate and one.guide.startswith(("strategy", "consensus")):
            kinds.setdefault(one.guide.partition(",")[0], []).append(one)
    for kind, those in sorted(kinds.items()):
        cells = []
        for budget in budgets_:
            values = [test.minus(c.name, c.same_drop, test=False).value for c in those if c.budget == budget]
            cells.append(
                f"{signed(float(np.mean(values)))} [{signed(min(values))}, {signed(max(values))}]" if values else ""
            )
        yield row(kind, *cells)


def picked(both: Both) -> Lines:
    """The best choice on tuning scenes, a model of its own, and what it is worth on test scenes."""
    tuning, test = both.tuning, both.test
    minus = ("tuning, minus FastV", "test, minus FastV", "test, minus all heads there")
    yield from header("picked among", "budget", "of", *minus, "picked, one per model")
    groups: dict[str, Callable[[Choice], bool]] = {
        "strategies and consensus": lambda one: one.guide.startswith(("strategy", "consensus")),
        "profiles": lambda one: one.guide.startswith("profile"),
        "rows and aggregates": lambda one: one.guide.startswith("all heads"),
        "everything": lambda one: True,
    }
    for title, wanted in groups.items():
        for budget in both.study.budgets:
            those = [one for one in tuning.choices if one.candidate and one.budget == budget and wanted(one)]
            if not those:
                continue
            best = [
                max(those, key=lambda one, place=place: tuning.percents(one.name)[place])
                for place in range(len(tuning.models))
            ]
            names, base = [one.name for one in best], baseline(budget, test)
            said = "; ".join(f"{one.guide} at {one.p} of {one.start}" for one in best)
            beside = _full(test, names, [one.same_drop for one in best])
            yield row(title, budget, len(those), _full(tuning, names, base), _full(test, names, base), beside, said)


def profiles(both: Both) -> Lines:
    """Each model's profiles: how reliable, and which heads weigh most."""
    yield from header("model", "criterion", "rank correlation of two halves", "heaviest heads (layer-head)")
    for model in both.study.models:
        for criterion in both.study.profiles:
            found = load_object(profile_file(both.out, model, criterion))
            best = sorted(found["weights"], key=lambda one: (-one[2], one[:2]))[:6]
            yield row(model, criterion, f"{found['reliability']:.2f}", ", ".join(f"{a}-{b}" for a, b, _ in best))


def kinds(both: Both) -> Lines:
    """What each kind of question costs at a budget: everything kept, FastV, the best methods, and the bound."""
    test = both.test
    budget = min(both.study.budgets, key=lambda one: abs(one - 64))
    base = Choice.of(baseline(budget, test))
    those = [one.name for one in test.choices if one.start == METHOD and one.budget == budget]
    best = sorted(those, key=lambda name: -test.percent(name))[:2]
    columns = {
        "everything kept": EVERYTHING,
        "FastV": base.name,
        **{f"`{Choice.of(name).guide}`": name for name in best},
        "oracle tokens": choice_name(base.start, base.p, budget, ORACLE),
    }
    yield from header("kind", "questions", *columns)
    for kind in sorted(set(test.kinds.tolist())):
        count = int((test.kinds == kind).sum())
        yield row(kind, count, *(f"{test.percent(name, kind):.0f}" for name in columns.values()))


def order(both: Both) -> Lines:
    """What each method leaves of the unpruned model's answers, beside what was published for LLaVA-1.5-7B."""
    yield from header("budget", "methods", "rank correlation", "method: here, published")
    for budget in both.study.budgets:
        here, there = ours(both.test, budget), published(budget)
        found, methods_ = agreement(here, there)
        if methods_:
            said = "; ".join(f"`{one}` {here[one]:.1f}, {there[one]:.1f}" for one in methods_)
            yield row(budget, len(methods_), "" if np.isnan(found) else f"{found:.2f}", said)


TABLES: dict[str, Callable[[Both], Lines]] = {
    "equal-budgets": budgets,
    "equal-methods": methods,
    "equal-kinds": kinds,
    "equal-order": order,
    "equal-layers": layers,
    "equal-best": strategies,
    "equal-strategies": families,
    "equal-picked": picked,
    "equal-profiles": profiles,
}


def main() -> None:
    """Fill the documents and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--doc", type=Path, nargs="+", default=[])
    arguments = parser.parse_args()
    study = read_study(arguments.study)
    both = Both(study, arguments.out, *(Results(study, arguments.out, split) for split in ("tuning", "test")))
    both.test.say_left_out()
    tables = {name: list(table(both)) for name, table in TABLES.items()}
    if not arguments.doc:
        print("\n\n".join(f"## {name}\n\n" + "\n".join(lines) for name, lines in tables.items()))
        return
    texts = fill([doc.read_text(encoding="utf-8") for doc in arguments.doc], tables)
    for doc, text in zip(arguments.doc, texts, strict=True):
        doc.write_text(text, encoding="utf-8")
    equal_plots.draw(both.test, study, arguments.doc[0].with_suffix(""))


if __name__ == "__main__":
    main()
