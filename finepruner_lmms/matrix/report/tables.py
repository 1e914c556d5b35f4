"""The leaderboard as text, Markdown, CSV or LaTeX. What is not done is shown as missing, never as 0."""

from __future__ import annotations

from collections.abc import Callable

from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.costs import short_costs
from finepruner_lmms.matrix.report.exact import exact_frame
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.latex import HEAD, floats
from finepruner_lmms.matrix.report.names import ordered, row_names, task_title
from finepruner_lmms.matrix.report.notes import RELATIVE, notes
from finepruner_lmms.matrix.report.reading import beside_frame, deltas_frame, scores_frame
from finepruner_lmms.output import markdown, plain

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
