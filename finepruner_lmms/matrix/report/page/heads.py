"""What the page shows of heads, as JSON: strategies compared, heads alone, those chosen, and consensus over time."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.head_choices import (
    Choices,
    agreement,
    choices,
    chosen_by_task,
    damaged_selections,
    selections,
)
from finepruner_lmms.matrix.report.head_study import best_by_budget, heads_alone, ranking, studied
from finepruner_lmms.matrix.report.page.blocks import finite
from finepruner_lmms.matrix.store import Store

Json = dict[str, Any]
_TUNING = tuple(data for data, which in MINIATURES.items() if which.split == "tuning")
_BRANCHES = ("gap", "high", "low", "fallback")
_MOST_POINTS = 400
"""Points of a trend: more are averaged, so that a page does not grow with its study."""
_PICKED = (
    "A strategy or a number of heads that is picked from these plots is picked on the very questions that it is then "
    "reported on. Pick on a tuning split (demo: data: demo-tuning), report on the test split."
)


def heads_data(store: Store, name: str, board: Leaderboard) -> Json:
    """Everything about heads in one study, which the board calls `name`; empty lists where there is nothing."""
    study, board = store.study(), board.of(name)
    chosen = studied(board)
    return {
        "of": name,
        "warning": _PICKED if chosen and study.cells[0].data not in _TUNING else None,
        "study": [
            {"key": one.line.key, "strategy": one.strategy, "heads": str(one.heads), "others": one.others}
            for one in chosen
        ],
        "ranking": [
            {"strategy": name, "shown": finite(d.value), "low": finite(d.low), "high": finite(d.high)}
            for name, d in (ranking(board) if chosen else {}).items()
        ],
        "best": [one.line.key for one in best_by_budget(chosen)],
        "alone": [
            {"tokens": tokens, "heads": [[layer, head, finite(value)] for (layer, head), value in places.items()]}
            for tokens, places in heads_alone(board).items()
        ],
        "chosen": _chosen(store, study),
        "consensus": _consensus(store, study),
        "damaged": list(damaged_selections(store, study)),
    }


def _chosen(store: Store, study: Study) -> list[Json]:
    """Rows of one budget and number of heads together: how often each head is chosen, and how far rows agree."""
    groups: dict[tuple[Any, Any], dict[str, Choices]] = {}
    for number, row in enumerate(study.rows):  # of rows that choose: not the same heads for every question
        if row.given.get("head_strategy") == "fixed":
            continue
        found = choices(store, study, number)
        if len({head for heads in found.values() for head in heads}) > min(map(len, found.values()), default=0):
            name = row.model_copy(update={"budget": None}).label
            groups.setdefault((row.budget, row.given.get("heads")), {})[name] = found
    data = []
    for (budget, heads), rows in groups.items():
        shares = chosen_by_task(rows)
        table, names = agreement(rows)
        data.append(
            {
                "title": f"budget {budget}" + (f", {heads} heads" if heads is not None else ""),
                "questions": {name: len(found) for name, found in rows.items()},
                "shares": [
                    {"row": name, "task": task, "shares": [round(float(share), 4) for share in found]}
                    for (name, task), found in shares.items()
                ],
                "agreement": {"names": names, "table": [[finite(v) for v in line] for line in table.tolist()]}
                if len(rows) > 1
                else None,
            }
        )
    return data


def _consensus(store: Store, study: Study) -> list[Json]:
    """What consensus selection did, of each row that wrote it down."""
    data = []
    for number, row in enumerate(study.rows):
        records = [entry for entry in selections(store, study, number) if "qualities" in entry]
        if not records:
            continue
        qualities: defaultdict[str, list[float]] = defaultdict(list)
        for entry in records:
            for name, value in entry["qualities"].items():
                qualities[name].append(value)
        data.append(
            {
                "row": row.label,
                "selections": len(records),
                "tasks": [title(task) for task in dict.fromkeys(r["task"].removeprefix("fp_") for r in records)],
                "branches": {name: sum(r["branch"] == name for r in records) for name in _BRANCHES},
                "qualities": [{"name": name, "quartiles": _quartiles(values)} for name, values in qualities.items()],
                "complexity": _trend([r["complexity"] for r in records]),
                "heads": _trend([r["n_heads"] for r in records]),
                "diversity": _trend([r["share_diversity"] for r in records]),
            }
        )
    return data


def _quartiles(values: Sequence[float]) -> list[float]:
    """Least, first quartile, median, third quartile, largest."""
    if len(values) == 1:
        return [values[0]] * 5
    return [min(values), *statistics.quantiles(values, n=4, method="inclusive"), max(values)]


def _trend(values: Sequence[float]) -> list[list[float]]:
    """Pairs of place and value: each, or the means of equally many where there are more than `_MOST_POINTS`."""
    step = -(-len(values) // _MOST_POINTS)
    parts = [values[start : start + step] for start in range(0, len(values), step)]
    return [[place * step + (len(part) - 1) / 2, statistics.fmean(part)] for place, part in enumerate(parts)]
