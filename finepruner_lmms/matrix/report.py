"""The report of a run: one HTML file with its tables and pictures inside, and nothing to load from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.matrix import head_plots
from finepruner_lmms.matrix.leaderboard import Leaderboard, Line, leaderboard
from finepruner_lmms.matrix.paired import average_draws
from finepruner_lmms.matrix.store import Json, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px}th,td{padding:.15rem .6rem;text-align:right}"
    "th:first-child,td:first-child{text-align:left}thead th{border-bottom:1px solid #999}"
    "tbody tr:hover{background:#f2f2f2}img{max-width:100%}.note{color:#666;font-size:13px}.warn{color:#a40}"
)


def build_report(store: Store) -> str:
    """The report as HTML. What is not done is left out or shown as missing; `StoreError` if nothing was planned."""
    record, board = store.matrix(), leaderboard(store)
    parts = [f"<h1>{html.escape(record['name'])}</h1>", _settings(record), *_leaderboard(board)]
    parts += _heads(store, record, leaderboard(store, merge_seeds=False))
    parts += _selections(store, record)
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(record["name"])}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _settings(record: Json) -> str:
    spec = record["cells"][0]
    limit = spec["spec"]["limit"] if "spec" in spec else None
    asked = f"{limit} questions a task" if limit else "all questions"
    sizes = f"{record['num_layers']} decoder layers, {record['num_visual_tokens']} visual tokens"
    text = f"{record['model']}, {sizes}, {asked}"
    return f'<p class="note">{html.escape(text)}</p>'


def _leaderboard(board: Leaderboard) -> Iterator[str]:
    from finepruner_lmms.matrix.plot import figure
    from finepruner_lmms.matrix.table import cost_frame, notes, reading_frame

    yield "<h2>Leaderboard</h2>"
    if any(line.average is not None for line in board.lines):
        yield picture(figure(board), "Mean score against the budget, a line a method")
    yield reading_frame(board).to_html(index=False, border=0, escape=True)
    yield f'<p class="note">{"<br>".join(html.escape(note) for note in notes(board))}</p>'
    if any(line.cost for line in board.lines):
        yield "<h2>Cost of prefill</h2>"
        yield cost_frame(board).to_html(index=False, border=0, escape=True)


def _heads(store: Store, record: Json, board: Leaderboard) -> Iterator[str]:
    """The head study, where rows differ in their head strategy."""
    chosen = [
        line for line in board.lines if "head_strategy" in line.given and line.given["head_strategy"] != "consensus"
    ]
    if len({line.given["head_strategy"] for line in chosen}) < 2:
        return
    yield "<h2>Head strategies</h2>"
    data = record["cells"][0].get("spec", {}).get("data", "")
    if data != "demo-tuning":
        yield (
            '<p class="warn">A strategy or a number of heads that is picked from these pictures is picked on the very '
            "questions that it is then reported on. Pick on a tuning split (demo: <code>data: demo-tuning</code>), "
            "report on the test split.</p>"
        )
    for task in (*board.tasks, "average"):
        title = BENCHMARKS[task].title if task in BENCHMARKS else "average of all tasks"
        grid = _grid(chosen, task)
        if not grid:
            continue
        baseline = {int(line.tokens): _score(line, task) for line in board.lines if _is_fastv(line)}
        known = {budget: value for budget, value in baseline.items() if value is not None}
        yield f"<h3>{html.escape(title)}</h3>"
        yield picture(head_plots.heat_map(grid, f"{title}: strategy × budget and heads"), f"Heat map of {title}")
        yield picture(head_plots.lines(grid, known, f"{title}: at the best number of heads"), f"Lines of {title}")
        yield picture(head_plots.box_plot(grid, f"{title}: over budgets and numbers of heads"), f"Box plot of {title}")
    if ranked := _ranking(store, record):
        yield "<h3>Ranking</h3>"
        yield picture(
            head_plots.ranking(ranked, "difference to all heads (fastv) at the same budget, mean over settings"),
            "Ranking of the strategies with 95 % intervals",
        )
    yield "<h3>Best configurations</h3>"
    yield _best(chosen)


def _is_fastv(line: Line) -> bool:
    return line.method == "fastv" and not line.given


def _score(line: Line, task: str) -> float | None:
    if task == "average":
        return line.average
    return line.scores[task].percent if task in line.scores else None


def _grid(chosen: list[Line], task: str) -> head_plots.Grid:
    scores = ((line, _score(line, task)) for line in chosen)
    grid: dict[tuple[str, int, Any], list[float]] = {}
    for line, value in scores:
        if value is not None:
            key = (str(line.given["head_strategy"]), int(line.tokens), line.given.get("heads", "default"))
            grid.setdefault(key, []).append(value)
    return {key: statistics.fmean(values) for key, values in grid.items()}


def _ranking(store: Store, record: Json) -> dict[str, tuple[float, float, float]]:
    """Each strategy's mean paired difference to `fastv` at the same budget, with its 95 % interval."""
    fastv = {
        row["budget"]: number
        for number, row in enumerate(record["rows"])
        if row["method"] == "fastv" and not row["given"]
    }
    draws: dict[str, list[np.ndarray]] = {}
    values: dict[str, list[float]] = {}
    for number, row in enumerate(record["rows"]):
        strategy = row["given"].get("head_strategy")
        if strategy in (None, "consensus") or row["budget"] not in fastv:
            continue
        if (found := average_draws(store, record, number, fastv[row["budget"]])) is not None:
            values.setdefault(strategy, []).append(found[0])
            draws.setdefault(strategy, []).append(found[1])
    ranked = {}
    for strategy, found_draws in draws.items():
        low, high = np.quantile(np.mean(found_draws, axis=0), (0.025, 0.975))
        ranked[strategy] = statistics.fmean(values[strategy]), float(low), float(high)
    return ranked


def _best(chosen: list[Line]) -> str:
    import pandas as pd

    rows = []
    for tokens in sorted({line.tokens for line in chosen}, reverse=True):
        done = [line for line in chosen if line.tokens == tokens and line.average is not None]
        if not done:
            continue
        best = max(done, key=lambda line: line.average or 0)
        rows.append({"budget": best.budget, **best.given, "average": f"{best.average:.1f} ± {best.average_error:.1f}"})
    return pd.DataFrame(rows, dtype=object).to_html(index=False, border=0) if rows else "<p>none is complete yet</p>"


def _selections(store: Store, record: Json) -> Iterator[str]:
    """What consensus selection did, where it was written down (`monitor: true`)."""
    from finepruner_lmms.matrix.cells import row_label

    for number, row in enumerate(record["rows"]):
        records = selections(store, record, number)
        records = [entry for entry in records if "qualities" in entry]
        if not records:
            continue
        yield f"<h2>Consensus selection: {html.escape(row_label(row))}</h2>"
        branches = {name: sum(r["branch"] == name for r in records) for name in ("gap", "high", "low", "fallback")}
        shown = ", ".join(f"{name} {100 * count / len(records):.0f} %" for name, count in branches.items())
        yield f"<p>{len(records)} selections. Branches: {shown}.</p>"
        yield picture(head_plots.qualities(records), "Distribution of the strategies' quality")
        complexity = head_plots.trend((r["complexity"] for r in records), "complexity", (0.3, 0.7))
        yield picture(complexity, "Complexity over the samples")
        yield picture(
            head_plots.trend((r["n_heads"] for r in records), "heads chosen"), "Number of heads over the samples"
        )
        yield picture(head_plots.shares(records), "Contribution of consensus and diversity heads")


def selections(store: Store, record: Json, row: int) -> list[dict[str, Any]]:
    """What was written down of a row's selections, in the order of tasks and documents; the latest of each."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for cell in record["cells"]:
        if cell["row"] != row:
            continue
        for file in sorted(store.cell_dir(cell).glob("selections-rank*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                found[entry["task"], entry["doc_id"], entry["layer"]] = entry
    return [found[key] for key in sorted(found)]


def picture(figure: Figure, text: str) -> str:
    """A figure as an image inside the page, with a text for those who cannot see it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></p>'


def write_report(store: Store, target: Path) -> None:
    """Write the report to `target`, as a whole or not at all."""
    text = build_report(store)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
