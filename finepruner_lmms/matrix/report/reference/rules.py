"""Which published score may stand beside a score of ours, and how close is close.

Families of evaluations (lineages) differ in prompts, splits, scorers and in what a budget means, by up to 15 points
for the same method. A score is compared inside one source only, and only where split, metric and setting are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.matrix.report.reference.records import Published

LINEAGES = {
    "llava-official": "LLaVA's own evaluation of the unpruned model",
    "cdpruner-lineage": "papers that share CDPruner's baselines (budget: average over layers)",
    "independent-rerun": "RESTORE, which ran all methods in one environment",
    "finepruner-head-project": "recorded runs of the LLaVA-FinePruner-Head project (fp16, one run per cell)",
}
"""What compares with rows of ours, in the order in which it is shown."""

LEFT_OUT = {
    "sparsevlm-lineage": "its budgets are not all averages over layers, and POPE's metric is not stated",
    "unclassified": "it is not known which evaluation they belong to",
}
"""Lineages that compare with nothing here, and why."""

_ONLY = {"agilepruner-t7": {"vispruner", "fastervlm"}}
"""Sources of second hand: only methods that no better source has."""

_JOINED = {"finepruner-head-raw": "finepruner-head", "finepruner-head-logs": "finepruner-head"}
"""Answers and logs of the same runs count as one source."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "rows": "raw", "aggregate": "mean"},
    "vispruner": {"important_ratio": 0.5},
    "cdpruner": {"relevance": "clip"},
    "eadp": {"relevance": "clip", "alpha": 0.5, "beta": 1.0},
    "mmtok": {"words": "keywords", "text_temperature": 0.02},
    "scope": {"alpha": 1.0, "importance": "cls"},
    "finepruner": {"layer": 2, "query": "last", "normalise": "resoftmax", "rows": "raw", "aggregate": "mean"},
}
"""The settings that were published; a row with others is another method."""

_METRICS = {
    "vqav2": ("vqav2", ("accuracy",)),
    "gqa": ("gqa", ("accuracy",)),
    "vizwiz": ("vizwiz", ("accuracy",)),
    "sqa": ("sqa", ("accuracy",)),
    "textvqa": ("textvqa", ("accuracy",)),
    "pope": ("pope", ("f1",)),
    "mme": ("mme_perception", ("perception",)),
    "mme_total": ("mme", ("total",)),
    "mmbench": ("mmbench", ("circular_accuracy", "accuracy")),
    "mmbench_cn": ("mmbench_cn", ("circular_accuracy", "accuracy")),
    "mmvet": ("mmvet", ("score",)),
}
"""Task → the benchmark and the metrics of the collection that are the same quantity as ours, the closest first."""

_STAND_INS = {
    "vqav2": "published on test-dev, here on validation",
    "vizwiz": "published on test, here on validation",
}
"""Tasks that only a server scores on the published split."""

_DEGENERATE = {"sparsity", "hierarchical", "multi_objective"}

MME_TOTAL = "mme_total"
"""Perception and cognition together: no task, but a figure of one."""
_POINTS = {"mme": 25.0, MME_TOTAL: 35.0, "mmvet": 1.5}


@dataclass(frozen=True)
class Place:
    """Where a row of ours stands in the literature."""

    method: str
    budget: int
    heads: int | None = None
    strategy: str | None = None


def tolerance(task: str) -> float:
    """How far a score may be from a published one to count as reproduced, in the field's unit.

    One point of 100. Two independent runs of FastV at 128 and 64 tokens (`tops-t11`, `restore-t1`) differ by at most
    that in nine of ten cells. 35 of MME's 2800 points and so 25 of the 2000 of perception: runs of the head project
    that are the same method mathematically differ by 33 in total. 1.5 of MM-Vet, whose judge is not deterministic.
    """
    return _POINTS.get(task, 1.0)


def source_of(record: Published) -> str:
    """The source by which a record is grouped."""
    return _JOINED.get(record.source, record.source)


def compares(record: Published) -> bool:
    """Whether rows of ours may be held against it at all."""
    only = _ONLY.get(record.source)
    return record.lineage in LINEAGES and (only is None or record.method in only)


def place_of(method: str, tokens: float, parameters: Mapping[str, Any]) -> Place | str:
    """Where a row belongs, or why it has no published counterpart.

    `tokens` is its budget as a number of visual tokens, `parameters` are those that its matrix file gives.
    """
    if abs(tokens - round(tokens)) > 1e-6:
        return f"its budget is {tokens:g} tokens"
    given = {name: value for name, value in parameters.items() if name != "seed"}
    heads = strategy = None
    if method == "finepruner":
        heads, strategy = given.pop("heads", 16), given.pop("head_strategy", "sum")
    known = _SETTINGS.get(method, {})
    other = [f"{name}={value}" for name, value in given.items() if known.get(name, object()) != value]
    if other:
        return f"{', '.join(other)} is not as published"
    return Place(method, round(tokens), heads, strategy)


def why_not(task: str, record: Published) -> str | None:
    """Why a score of ours on `task` is shown beside a record but not held against it; None where it is."""
    if task in _STAND_INS:
        return _STAND_INS[task]
    if record.strategy in _DEGENERATE:
        return f"{record.strategy}: published in fp16, where its scores degenerate"
    return None


def same_quantity(task: str, records: Iterable[Published]) -> Published | None:
    """Of records of one row, the one whose benchmark and metric `task` has on the leaderboard."""
    benchmark, metrics = _METRICS.get(task, ("", ()))
    found = [record for record in records if record.benchmark == benchmark and record.metric in metrics]
    return min(found, key=lambda record: metrics.index(record.metric), default=None)
