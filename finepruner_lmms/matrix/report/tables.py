"""The leaderboard as text, Markdown, CSV or LaTeX. What is not done is shown as missing, never as 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.progress import MISSING
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.costs import short_costs
from finepruner_lmms.matrix.report.exact import exact_frame
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.latex import HEAD, floats
from finepruner_lmms.matrix.report.names import ordered, row_names, task_title
from finepruner_lmms.matrix.report.notes import APART, RELATIVE, notes
from finepruner_lmms.matrix.report.scores import beside_frame, deltas_frame, scores_frame
from finepruner_lmms.output import markdown, plain

if TYPE_CHECKING:
    from finepruner_lmms.matrix.report.compare import Compared

__all__ = ["FORMATS", "RELATIVE", "notes", "reading_frame", "render", "task_title"]


def render(board: Leaderboard, form: str, relative: str = "ratios") -> str:
    """The table in one of `FORMATS`, ending in a newline; `relative` is one of `RELATIVE`."""
    return FORMATS[form](board, relative)


def reading_frame(board: Leaderboard) -> Frame:
    """The scores as texts."""
    return scores_frame(board)


def _parts(board: Leaderboard, relative: str) -> list[tuple[str, Frame]]:
    """Scores, differences and costs, each with its heading."""
    parts = [("scores", scores_frame(board, relative))]
    if (deltas := deltas_frame(board)) is not None:
        parts.append(("differences", deltas))
    if (beside := beside_frame(board)) is not None:
        parts.append(("further figures", beside))
    costs = short_costs(board)
    if any(costs):
        lines, headings = ordered(board)
        named = [row_names(board, line) | row for line, row in zip(lines, costs, strict=True)]
        parts.append(("cost", Frame.of(named, headings, words=parts[0][1].words)))
    return parts


def _text(board: Leaderboard, relative: str) -> str:
    parts = "\n".join(frame.text(f"{board.name}: {what}") for what, frame in _parts(board, relative))
    return parts + "\n" + "".join(f"{plain(note)}\n" for note in notes(board, relative))


def _markdown(board: Leaderboard, relative: str) -> str:
    parts = (f"**{markdown(board.name)}: {what}**\n\n{frame.markdown()}\n\n" for what, frame in _parts(board, relative))
    return "".join(parts) + "".join(f"- {markdown(note)}\n" for note in notes(board, relative))


def _csv(board: Leaderboard, relative: str) -> str:
    return exact_frame(board, relative).csv()


def _latex(board: Leaderboard, relative: str) -> str:
    """Costs stand beside scores, since a value and its interval are one above the other."""
    scores = scores_frame(board, relative).beside(short_costs(board))
    tables = floats(scores, [f"{board.name}: scores.", *notes(board, relative)])
    if (deltas := deltas_frame(board)) is not None:
        tables += floats(deltas, [f"{board.name}: differences with 95 % intervals."])
    if (beside := beside_frame(board)) is not None:
        tables += floats(beside, [f"{board.name}: further figures."])
    return HEAD + "\n".join(tables)


FORMATS: dict[str, Callable[[Leaderboard, str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}


def render_differences(found: Sequence[Compared], first: str, second: str) -> str:
    """A paired comparison as Markdown, which reads well as text, too."""
    rows = []
    for one in found:
        d = one.difference
        rows.append(
            (
                title(one.task, one.measure),
                f"{one.first:.1f}",
                f"{one.second:.1f}",
                f"{d.value:+.1f} ± {MISSING if d.error is None else f'{d.error:.1f}'}",
                MISSING if d.low is None or d.high is None else f"{d.low:+.1f} to {d.high:+.1f}",
            )
        )
    frame = Frame(("task", first, second, "difference", "95 %"), rows)
    note = "Percent of the maximum, paired over images."
    alone = [d.task for d in found if d.measure is not None and not d.measure.per_sample]
    if apart := [d.task for d in found if d.measure is not None and d.measure.scale is None]:
        note += f" {', '.join(apart)}: as lmms-eval prints it, {APART}; no part of the average."
    if alone:
        note += f" {', '.join(alone)}: lmms-eval has no score of single questions, so that nothing can be paired."
    return f"{frame.markdown()}\n\n{note}\n"
