"""Our scores beside the published ones, as text, Markdown, LaTeX or CSV: a part for each lineage, never mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.progress import MISSING
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.latex import HEAD, floats
from finepruner_lmms.matrix.report.reference import rules
from finepruner_lmms.matrix.report.reference.comparison import (
    Against,
    Held,
    Literature,
    columns,
    heading,
    name_of,
    reasons,
)
from finepruner_lmms.matrix.report.reference.records import MODEL, citations
from finepruner_lmms.output import markdown, plain

MARK = "!"


def render_literature(board: Leaderboard, found: Literature, form: str) -> str:
    """The comparison in one of `FORMATS`, ending in a newline."""
    return FORMATS[form](board, found)


def summary(found: Literature) -> list[str]:
    """What became of it, in a few lines: how much is reproduced, and each cell that is not."""
    judged = [row for row in found.rows if row.judged]
    compared = sum(len(row.compared) for row in judged)
    if not compared:
        return ["No score of these rows compares with a published one."]
    outside = [(row, cell) for row in judged for cell in row.outside]
    rows = f"{len(judged)} row{'s' if len(judged) > 1 else ''}"
    if not outside:
        return [f"Every cell reproduced: {compared} of {compared}, in {rows}."]
    lines = [f"Reproduced: {compared - len(outside)} of {compared} cells, in {rows}. Outside the tolerance:"]
    for row, cell in outside:
        lines.append(
            f"{MARK} {name_of(row.line)}, {heading(cell.task)}: {cell.ours:.1f}, published {cell.record.value:.1f} "
            f"({row.source}), {_signed(cell.difference)}"
        )
    return lines


def notes(board: Leaderboard, found: Literature) -> list[str]:
    """What a reader must know about the numbers."""
    special = [task for task in columns(board) if rules.tolerance(task) != 1.0]
    also = "".join(f", {rules.tolerance(task):g} of {heading(task)}" for task in special)
    lines = list(found.warnings)
    lines += [
        f"Published scores are {MODEL}'s, collected from papers and recorded runs; none was measured here.",
        f"A cell: ours (published, difference); {MARK}: more than 1 point{also} away, so not reproduced; "
        "[published]: not compared.",
        "Sources contradict each other, so a row is judged on the source to which it is closest; the others are shown.",
    ]
    lines += reasons(found)
    used = dict.fromkeys(row.source for row in found.rows)
    lines += [f"{source}: {_citation(source)}." for source in used]
    if {"cdpruner-lineage", "finepruner-head-project"} <= {row.lineage for row in found.rows}:
        lines.append(
            "finepruner-head and the CDPruner lineage print the same MME scores to the last digit for several rows, so "
            "that they do not confirm each other."
        )
    lines += [f"{lineage} is left out: {why}." for lineage, why in rules.LEFT_OUT.items()]
    reached = {id(row.line) for row in found.rows if row.compared}
    limited = [title(task) for task in board.tasks if board.questions.get(task, 0) < _WHOLE.get(task, 0)]
    if limited and reached:
        lines.append(f"{', '.join(limited)}: fewer questions were asked than published, so a difference may be chance.")
    why: dict[str, list[str]] = {}
    for line, reason in found.missing:
        why.setdefault(reason, []).append(name_of(line))
    return lines + [f"Not published: {', '.join(names)} ({reason})." for reason, names in why.items()]


# what is asked of each task without a limit; POPE's file has 90 fewer than its dataset on the hub
_WHOLE = {
    "gqa": 12578, "sqa": 2017, "textvqa": 5000, "pope": 8910, "mme": 2374, "mmbench": 4329, "mmbench_cn": 4329,
    "mmvet": 218,
}  # fmt: skip


def _citation(source: str) -> str:
    known = citations()
    return known[source] if source in known else known[f"{source}-raw"].rpartition(", raw")[0]


def _frames(board: Leaderboard, found: Literature) -> Iterator[tuple[str, Frame]]:
    """The table of each lineage, with its title."""
    for lineage, what in rules.LINEAGES.items():
        rows = [row for row in found.rows if row.lineage == lineage]
        tasks = [task for task in columns(board) if any(row.cell(task) for row in rows)]
        if rows:
            yield f"{lineage}: {what}", Frame.of((_row(row, tasks) for row in rows), words=2)


def _row(row: Held, tasks: list[str]) -> dict[str, object]:
    line = row.line
    cells: dict[str, object] = {"row": name_of(line), "source": row.source}
    cells |= {heading(task): _cell(row.cell(task), row.judged) for task in tasks}
    compared = row.compared
    verdict = f"{len(compared) - len(row.outside)} of {len(compared)} reproduced"
    if not compared:
        verdict = "not compared"
    elif not row.outside:
        verdict = "reproduced"
    return cells | {"verdict": verdict if row.judged or not compared else f"({verdict}; not the closest)"}


def _cell(cell: Against | None, judged: bool) -> str:
    if cell is None:
        return MISSING
    if cell.difference is None:
        return f"{cell.ours:.1f} [{cell.record.value:.1f}]"
    mark = f" {MARK}" if judged and cell.verdict == "outside" else ""
    return f"{cell.ours:.1f} ({cell.record.value:.1f}, {_signed(cell.difference)}){mark}"


def _signed(difference: float | None) -> str:
    return f"{round(difference or 0.0, 1) + 0.0:+.1f}"  # never -0.0


def _said(board: Leaderboard, found: Literature) -> list[str]:
    return [*summary(found), *notes(board, found)]


def _text(board: Leaderboard, found: Literature) -> str:
    tables = "".join(f"{frame.text(above)}\n" for above, frame in _frames(board, found))
    return tables + "\n".join(map(plain, _said(board, found))) + "\n"


def _markdown(board: Leaderboard, found: Literature) -> str:
    tables = "".join(f"**{markdown(above)}**\n\n{frame.markdown()}\n\n" for above, frame in _frames(board, found))
    return tables + "\n".join(f"- {markdown(line)}" for line in _said(board, found)) + "\n"


def _latex(board: Leaderboard, found: Literature) -> str:
    tables: list[str] = []
    for above, frame in _frames(board, found):
        tables += floats(frame, [f"{above}.", *([] if tables else _said(board, found))])
    return HEAD + "\n".join(tables)


def literature_frame(found: Literature) -> Frame:
    """A row per score and source, exact."""
    return Frame.of(
        {
            "row": name_of(row.line),
            "method": row.line.method,
            "budget": cell.record.budget,
            "task": cell.task,
            "lineage": row.lineage,
            "source": cell.record.source,
            "metric": cell.record.metric,
            "split": cell.record.split_note or "",
            "confidence": cell.record.confidence,
            "ours": cell.ours,
            "published": cell.record.value,
            "difference": cell.difference,
            "tolerance": cell.tolerance,
            "verdict": cell.verdict,
            "why": cell.why or "",
            "judged": "yes" if row.judged else "no",
        }
        for row in found.rows
        for cell in row.cells
    )


def _csv(board: Leaderboard, found: Literature) -> str:
    return literature_frame(found).csv()


FORMATS: dict[str, Callable[[Leaderboard, Literature], str]] = {
    "text": _text,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
