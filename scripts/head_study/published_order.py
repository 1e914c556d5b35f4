"""Whether methods are in the order here that was published for LLaVA-1.5-7B."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

from scipy.stats import spearmanr

from head_study.parts import EVERYTHING, METHOD
from head_study.results import Results, baseline

_FILE = "llava-1.5-7b.json"
_MEAN = "acc_mean"  # a mean of scores, not of shares of the unpruned ones


def published(budget: int) -> dict[str, float]:
    """What is left of the unpruned model's score, in percent, by method: the mean of the sources that print one.

    Sources average over different benchmarks, shares of them or scores: a mean of scores is divided by the same
    source's of the unpruned model. The ways differ by up to 0.8 points.
    """
    folder = resources.files("finepruner_lmms.matrix.report.reference")
    printed = json.loads(folder.joinpath(_FILE).read_text(encoding="utf-8"))["aggregates"]
    means = [one for one in printed if one["convention"] == _MEAN]
    whole = {one["source"]: one["value"] for one in means if one["method"] == "vanilla"}
    found: dict[str, list[float]] = {}
    for one in printed:
        if one["budget"] == budget:
            scale = 100 / whole[one["source"]] if one["convention"] == _MEAN else 1
            found.setdefault(one["method"], []).append(scale * one["value"])
    return {method: sum(values) / len(values) for method, values in found.items()}


def ours(results: Results, budget: int) -> dict[str, float]:
    """The same as a study has it, by method; of variants of a method, the first that it names."""
    whole, found = results.percent(EVERYTHING), {}
    for one in results.choices:
        if one.start == METHOD and one.budget == budget:
            found.setdefault(one.guide.partition(" ")[0], 100 * results.percent(one.name) / whole)
    if (fastv := baseline(budget, results)) in results.names:
        found.setdefault("fastv", 100 * results.percent(fastv) / whole)
    return found


def agreement(one: Mapping[str, float], two: Mapping[str, float]) -> tuple[float, list[str]]:
    """Spearman's rank correlation over the methods that both have, and these, the best of `two` first."""
    both = sorted(set(one) & set(two), key=lambda method: (-two[method], method))
    if len(both) < 3:
        return float("nan"), both
    return float(spearmanr([one[name] for name in both], [two[name] for name in both]).statistic), both
