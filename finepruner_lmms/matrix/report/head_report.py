"""The part of a report that is about heads: strategies compared, heads alone, and what was selected."""

from __future__ import annotations

import base64
import io
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.files import parse_json, read_bytes, split_lines
from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.measures import title as title_of
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.records import Fused, Selected
from finepruner_lmms.matrix.report import head_plots
from finepruner_lmms.matrix.report.baselines import paired_columns
from finepruner_lmms.matrix.report.board import AVERAGE, Leaderboard, Line
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.numbers import with_error
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import html
from finepruner_lmms.statistics.differences import Difference, average_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOT_RANKED = ("consensus", "fixed", "recommended")


def head_study(store: Store, study: Study, board: Leaderboard) -> Iterator[str]:
    """The head study, where rows differ in their head strategy."""
    chosen = [line for line in board.lines if _is_ranked(line.given.get("head_strategy"))]
    if len({line.given["head_strategy"] for line in chosen}) < 2:
        return
    yield "<h2>Head strategies</h2>"
    data = study.cells[0].data
    if data != "demo-tuning":
        yield (
            '<p class="warn">A strategy or a number of heads that is picked from these pictures is picked on the very '
            "questions that it is then reported on. Pick on a tuning split (demo: <code>data: demo-tuning</code>), "
            "report on the test split.</p>"
        )
    for task in (*board.tasks, "average"):
        title = "average of all tasks" if task == "average" else title_of(task)
        grid = _grid(chosen, task)
        if not grid:
            continue
        baseline = {int(line.tokens): _score(line, task) for line in board.lines if _is_fastv(line)}
        known = {budget: value for budget, value in baseline.items() if value is not None}
        yield f"<h3>{html(title)}</h3>"
        yield picture(head_plots.heat_map(grid, f"{title}: strategy × budget and heads"), f"Heat map of {title}")
        yield picture(head_plots.lines(grid, known, f"{title}: at the best number of heads"), f"Lines of {title}")
        yield picture(head_plots.box_plot(grid, f"{title}: over budgets and numbers of heads"), f"Box plot of {title}")
    if ranked := _ranking(board):
        yield "<h3>Ranking</h3>"
        yield picture(
            head_plots.ranking(
                ranked,
                "difference to all heads (fastv) at the same budget, mean over the settings that all strategies have",
            ),
            "Ranking of the strategies with 95 % intervals",
        )
    yield "<h3>Best configurations</h3>"
    yield _best(chosen)


def _is_ranked(strategy: str | None) -> bool:
    """Whether a strategy scores heads (those with heads of their own are no rivals at a number of heads)."""
    return strategy not in (None, *_NOT_RANKED)


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


def _ranking(board: Leaderboard) -> dict[str, Difference]:
    """Each strategy's mean paired difference to `fastv` at the same budget, over the settings that all of them have."""
    fastv = {(line.study, line.tokens): line for line in board.lines if _is_fastv(line)}
    found: dict[str, dict[Any, tuple[Line, Line]]] = {}
    for line in board.lines:
        strategy, base = line.given.get("head_strategy"), fastv.get((line.study, line.tokens))
        if not _is_ranked(strategy) or base is None or AVERAGE not in paired_columns(line, base, board):
            continue
        others = {name: value for name, value in line.given.items() if name != "head_strategy"}
        found.setdefault(str(strategy), {})[line.tokens, tuple(sorted(others.items()))] = line, base
    common = set.intersection(*(set(settings) for settings in found.values())) if found else set()
    ranked: dict[str, Difference] = {}
    for strategy, settings in found.items() if common else ():
        pairs = {(key, task): task for key in sorted(common, key=repr) for task in settings[key][0].tallies}
        one, other = (
            {(key, task): settings[key][place].tallies[task] for key, task in pairs if _in_average(board, task)}
            for place in (0, 1)
        )
        ranked[strategy] = average_difference(one, other, test=False)
    return ranked


def _in_average(board: Leaderboard, task: str) -> bool:
    return task in board.tasks and task not in board.apart


def _best(chosen: list[Line]) -> str:
    rows = []
    for tokens in sorted({line.tokens for line in chosen}, reverse=True):
        done = [line for line in chosen if line.tokens == tokens and line.average is not None]
        if not done:
            continue
        best = max(done, key=lambda line: line.average or 0)
        average = with_error(best.average or 0.0, best.average_error)
        rows.append({"budget": best.budget, **best.given, "average": average})
    return Frame.of(rows).html() if rows else "<p>none is complete yet</p>"


def heads_alone(board: Leaderboard) -> Iterator[str]:
    """How useful each head is as the only guide, where rows name one in `fixed_heads`: a map a budget."""
    budgets: dict[int, dict[tuple[int, int], float]] = {}
    for line in board.lines:
        named = str(line.given.get("fixed_heads", ""))
        if named.isdigit() and line.average is not None:
            layer = int(line.given.get("layer", 2)) - 1
            budgets.setdefault(int(line.tokens), {})[layer, int(named)] = line.average
    for tokens, places in sorted(budgets.items(), reverse=True):
        yield f"<h2>Each head alone as the guide, {tokens} tokens</h2>"
        yield picture(head_plots.alone(places), f"Score with each head alone as the guide, {tokens} tokens")


def heads_chosen(store: Store, study: Study) -> Iterator[str]:
    """Which heads rows choose, where selections were written down: agreement of rows, and stability across tasks."""
    groups: dict[tuple[Any, Any], dict[str, dict[tuple[str, int], list[int]]]] = {}
    for number, row in enumerate(study.rows):
        found = {
            (entry["task"], entry["doc_id"]): entry["heads"]
            for entry in selections(store, study, number)
            if entry.get("heads")
        }
        if found and row.given.get("head_strategy") != "fixed":
            name = row.model_copy(update={"budget": None}).label
            groups.setdefault((row.budget, row.given.get("heads")), {})[name] = found
    for (budget, heads), rows in groups.items():
        title = f"budget {budget}" + (f", {heads} heads" if heads is not None else "")
        if len(rows) > 1:
            yield f"<h2>Agreement of the choices: {html(title)}</h2>"
            yield picture(head_plots.matrix(*agreement(rows)), f"Share of heads in common, {title}")
        if len({task for found in rows.values() for task, _ in found}) > 1:
            yield f"<h2>Stability across tasks: {html(title)}</h2>"
            yield picture(head_plots.frequencies(chosen_by_task(rows)), f"How often each head is chosen, {title}")


def agreement(rows: dict[str, dict[tuple[str, int], list[int]]]) -> tuple[np.ndarray, list[str]]:
    """`[R, R]`: the mean share of heads in common (of the smaller choice) over the samples that two rows both saw."""
    names = list(rows)
    table = np.eye(len(names))
    for (i, first), (j, second) in itertools.combinations(enumerate(rows.values()), 2):
        common = first.keys() & second.keys()
        shares = [
            len(set(first[key]) & set(second[key])) / min(len(first[key]), len(second[key])) for key in sorted(common)
        ]
        table[i, j] = table[j, i] = statistics.fmean(shares) if shares else np.nan
    return table, names


def chosen_by_task(rows: dict[str, dict[tuple[str, int], list[int]]]) -> dict[str, np.ndarray]:
    """By "row · task": the share of samples in which each head is chosen, `[H]`."""
    size = 1 + max(head for found in rows.values() for heads in found.values() for head in heads)
    shares = {}
    for name, found in rows.items():
        for task in sorted({task for task, _ in found}):
            counts = np.zeros(size)
            samples = [heads for (of, _), heads in found.items() if of == task]
            for heads in samples:
                counts[heads] += 1
            shares[f"{name} · {task.removeprefix('fp_')}"] = counts / len(samples)
    return shares


def consensus_selections(store: Store, study: Study) -> Iterator[str]:
    """What consensus selection did, where it was written down (`monitor: true`)."""
    for number, row in enumerate(study.rows):
        records = selections(store, study, number)
        records = [entry for entry in records if "qualities" in entry]
        if not records:
            continue
        yield f"<h2>Consensus selection: {html(row.label)}</h2>"
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


def selections(store: Store, study: Study, row: int) -> list[dict[str, Any]]:
    """What was written down of a row's selections, in the order of tasks and documents; the latest of each."""
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for file in _selection_files(store, study, row):
        for entry in _entries(file):
            if entry is not None:
                found[entry["task"], entry["doc_id"], entry["layer"]] = entry
    return [found[key] for key in sorted(found)]


def damaged_selections(store: Store, study: Study) -> Iterator[str]:
    """A line for each file of selections of which some line, such as one that was cut off, is left out."""
    for row in range(len(study.rows)):
        for file in _selection_files(store, study, row):
            if lost := sum(entry is None for entry in _entries(file)):
                name = html(f"{file.parent.name}/{file.name}")
                yield f'<p class="warn">{name}: {lost} damaged line{"s" * (lost > 1)}, left out</p>'


def _selection_files(store: Store, study: Study, row: int) -> Iterator[Path]:
    for cell in study.cells:
        if cell.row == row:
            yield from sorted(store.cell_dir(cell).glob("selections-rank*.jsonl"))


def _entries(file: Path) -> Iterator[dict[str, Any] | None]:
    """The selections in a file, and None for each line that holds none."""
    try:
        lines = split_lines(read_bytes(file).decode("utf-8", errors="replace"))
    except OSError:
        lines = [""]
    for line in lines:
        try:
            entry = parse_json(line.encode())
            (Fused if isinstance(entry, dict) and "qualities" in entry else Selected).model_validate(entry)
        except ValueError:  # pydantic's are such, too
            entry = None
        yield entry


def picture(figure: Figure, text: str) -> str:
    """A figure as an image inside the page, with a text for those who cannot see it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html(text)}" src="data:image/png;base64,{data}"></p>'
