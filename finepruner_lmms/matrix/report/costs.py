"""What the rows of a leaderboard cost: exact counts of their prefills, and speeds where they were measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from finepruner_lmms.matrix.progress import MISSING
from finepruner_lmms.matrix.records import Speed
from finepruner_lmms.matrix.report.board import Leaderboard, Line, Timed
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.latex import HEAD, floats
from finepruner_lmms.matrix.report.names import ordered, row_names, task_title
from finepruner_lmms.output import markdown, plain

_COUNTS = {"visual_tokens": "tokens", "final_visual_tokens": "last layer"}
_COUNTS |= {"macs_2": "FLOPs 2ndm", "macs_3": "FLOPs 3ndm", "kv_bytes": "KV"}
_FLOPS = "FLOPs 3ndm"
_BESIDE = ("first_token_p50", "questions_per_second", "peak_bytes")
_SAME_HITS = 0.05
_COUNT_NOTES = (
    "Visual tokens entering a decoder layer: the average over the layers, and at the last one, as recorded.",
    "FLOPs (multiply-accumulates, as papers print them) of the decoder's prefill, text included, mean over questions: "
    "2ndm and 3ndm count two and three matrices of the feed-forward; the percentage is of vanilla's.",
    "KV: the cache after prefill, at 2 bytes per value.",
)
_SPEED_NOTES = (
    "TTFT: time to the first token of a batch, from the call of `generate` on; median and 95th percentile over "
    "batches, mean over tasks.",
    "ms/token: a decode step, which gives each row of a batch a token.",
    "questions/s: over the whole time, images included.",
    "peak: the most memory on one GPU, weights included.",
    "waiting: for input. image hits: questions whose image was encoded already.",
)


def render_costs(board: Leaderboard, form: str) -> str:
    """What the rows cost, in one of `tables.FORMATS`, ending in a newline; CSV with full precision and units of 1."""
    if form == "csv":
        return exact_cost_frame(board).csv()
    frame, said = cost_frame(board), cost_notes(board)
    if form == "latex":
        return HEAD + "\n".join(floats(frame, [f"{board.name}: cost of prefill.", *said]))
    if form == "markdown":
        return f"{frame.markdown()}\n\n" + "".join(f"- {markdown(note)}\n" for note in said)
    return frame.text(f"{board.name}: cost of prefill") + "\n" + "".join(f"{plain(note)}\n" for note in said)


def has_costs(board: Leaderboard) -> bool:
    """Whether anything of it was recorded."""
    return any(line.cost or line.timed for line in board.lines)


def cost_frame(board: Leaderboard) -> Frame:
    """What the rows cost, one per line of the leaderboard, for reading; columns that nothing fills are left out."""
    lines, headings = ordered(board)
    columns = [column for column in _COLUMNS if any(column.of(board, line) is not None for line in lines)]
    whole = _whole_cost(board)
    rows = [
        row_names(board, line)
        | _count_cells(line, whole)
        | {column.title: column.show(column.of(board, line)) for column in columns}
        for line in lines
    ]
    return Frame.of(rows, headings, words=len(row_names(board, lines[0])) if lines else 1)


def short_costs(board: Leaderboard) -> list[dict[str, object]]:
    """The few costs that papers print beside scores, for each row in the order of `names.ordered`.

    Tokens, FLOPs and cache as recorded; time to the first token, speed and memory where they were measured.
    """
    lines, _ = ordered(board)
    whole = _whole_cost(board)
    measured = [column for column in _COLUMNS if column.name in _BESIDE]
    measured = [column for column in measured if any(column.of(board, line) is not None for line in lines)]
    counted = any(line.cost for line in lines)
    rows: list[dict[str, object]] = []
    for line in lines:
        counts = _count_cells(line, whole)
        row: dict[str, object] = {name: counts[name] for name in ("tokens", _FLOPS, "KV")} if counted else {}
        rows.append(row | {column.title: column.show(column.of(board, line)) for column in measured})
    return rows


def exact_cost_frame(board: Leaderboard) -> Frame:
    """The same as numbers, in units of 1."""
    return Frame.of(row_names(board, line, exact=True) | exact_costs(board, line) for line in board.lines)


def exact_costs(board: Leaderboard, line: Line) -> dict[str, object]:
    """What a row cost, by names of columns; None where it was not recorded or measured."""
    row: dict[str, object] = {key: None if line.cost is None else line.cost.get(key) for key in _COUNTS}
    row |= measured_costs(board, line)
    row["measured_questions"] = sum(timed.speed.questions for timed in line.timed) or None
    row["conditions"] = "; ".join(dict.fromkeys(str(timed.speed.conditions) for timed in line.timed)) or None
    return row


def measured_costs(board: Leaderboard, line: Line) -> dict[str, float | None]:
    """What was measured of a row, by the names of CSV; None where it was not, or is not of the row alone."""
    return {column.name: column.of(board, line) for column in (*_COLUMNS, _WITHOUT_PAUSES)}


def cost_notes(board: Leaderboard) -> list[str]:
    """What a reader must know about the numbers."""
    return [*_COUNT_NOTES, *speed_notes(board)]


def speed_notes(board: Leaderboard) -> list[str]:
    """What was measured, on what, over which questions; rows that do not compare are named."""
    if not any(line.timed for line in board.lines):
        return []
    found: dict[str, list[str]] = {}
    for line in board.lines:
        for timed in line.timed:
            rows = found.setdefault(str(timed.speed.conditions), [])
            if (name := line.label) not in rows:
                rows.append(name)
    notes = list(_SPEED_NOTES)
    if len(found) == 1:
        notes.append(f"Measured on {next(iter(found))}.")
    else:
        notes.append("Not measured in the same conditions, so times compare only inside one of these:")
        notes += [f"{conditions}: {', '.join(rows)}" for conditions, rows in found.items()]
    hits = [
        timed.speed.image_hits for line in board.lines for timed in line.timed if timed.speed.image_hits is not None
    ]
    if hits and max(hits) - min(hits) > _SAME_HITS:
        notes.append(
            "Rows found different shares of their images encoded already (image hits), so that questions/s is not the "
            "methods' doing alone; TTFT and ms/token begin after images and are."
        )
    if any(timed.speed.conditions.together > 1 for line in board.lines for timed in line.timed):
        notes.append(
            "Cells that were answered at once share their time, so they have none of their own here; 'launch: "
            "{fan_out: off}' measures each alone."
        )
    for line in board.lines:
        for timed in line.timed:
            if timed.speed.questions < timed.answered:
                notes.append(
                    f"{line.label}, {task_title(board, timed.task)}: measured over {timed.speed.questions} of "
                    f"{timed.answered} questions; an earlier attempt had answered the others."
                )
            if timed.speed.attempts > 1:
                notes.append(
                    f"{line.label}, {task_title(board, timed.task)}: measured over {timed.speed.attempts} attempts, "
                    "each of which warmed up anew; what was lost between them does not count."
                )
    return notes


def _whole_cost(board: Leaderboard) -> dict[str, float] | None:
    return next((line.cost for line in board.lines if line.method == "vanilla" and line.cost), None)


def _count_cells(line: Line, whole: dict[str, float] | None) -> dict[str, object]:
    if line.cost is None:
        return dict.fromkeys(_COUNTS.values(), MISSING)
    cells: dict[str, object] = {}
    for key, title in _COUNTS.items():
        value = line.cost.get(key)
        if value is None:
            cells[title] = MISSING
        elif key.startswith("macs"):
            share = f" ({100 * value / whole[key]:.0f} %)" if whole and whole.get(key) else ""
            cells[title] = (f"{value / 1e12:.3f} T" if value >= 1e11 else f"{value / 1e9:.3f} G") + share
        else:
            cells[title] = f"{value / 2**20:.2f} MiB" if key == "kv_bytes" else f"{value:.1f}"
    return cells


class _Column:
    """A measured column: what it takes of a row's speeds, and how it is shown."""

    def __init__(
        self,
        name: str,
        title: str,
        join: Callable[[Sequence[Speed]], float | None],
        show: Callable[[float], str],
        apart: bool = True,
    ) -> None:
        self.name, self.title, self._join, self._show, self._apart = name, title, join, show, apart

    def of(self, board: Leaderboard, line: Line) -> float | None:
        """The row's value; None unless every task was measured, and by itself where that is what it means."""
        speeds = [timed.speed for timed in line.timed]
        if {timed.task for timed in line.timed} != set(board.tasks) or not _whole(board, line.timed, line):
            return None
        if self._apart and any(speed.conditions.together > 1 for speed in speeds):
            return None
        return self._join(speeds)

    def show(self, value: float | None) -> str:
        """For reading."""
        return MISSING if value is None else self._show(value)


def _whole(board: Leaderboard, timed: Sequence[Timed], line: Line) -> bool:
    """Whether every task of every seed is there."""
    return len(timed) == len(board.tasks) * max(1, len(line.seeds))


def _mean(name: str) -> Callable[[Sequence[Speed]], float | None]:
    def join(speeds: Sequence[Speed]) -> float | None:
        known = [value for speed in speeds if (value := getattr(speed, name)) is not None]
        return statistics.fmean(known) if len(known) == len(speeds) else None

    return join


def _rate(name: str) -> Callable[[Sequence[Speed]], float]:
    """Of all tasks, asked one after the other."""

    def join(speeds: Sequence[Speed]) -> float:
        rows = [speed.questions_per_second * speed.seconds for speed in speeds]
        return sum(rows) / sum(row / getattr(speed, name) for row, speed in zip(rows, speeds, strict=True))

    return join


def _peak(speeds: Sequence[Speed]) -> float | None:
    known = [speed.peak_bytes for speed in speeds if speed.peak_bytes is not None]
    return max(known) if len(known) == len(speeds) else None


def _waiting(speeds: Sequence[Speed]) -> float | None:
    known = [(speed.waiting * speed.seconds, speed.seconds) for speed in speeds if speed.waiting is not None]
    return sum(w for w, _ in known) / sum(s for _, s in known) if len(known) == len(speeds) else None


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms"


_COLUMNS = (
    _Column("first_token_p50", "TTFT p50", _mean("first_token_p50"), _milliseconds),
    _Column("first_token_p95", "TTFT p95", _mean("first_token_p95"), _milliseconds),
    _Column("seconds_per_token", "ms/token", _mean("seconds_per_token"), _milliseconds),
    _Column("questions_per_second", "questions/s", _rate("questions_per_second"), lambda value: f"{value:.2f}"),
    _Column("peak_bytes", "peak", _peak, lambda value: f"{value / 2**30:.2f} GiB", apart=False),
    _Column("waiting", "waiting", _waiting, lambda value: f"{100 * value:.1f} %", apart=False),
    _Column("image_hits", "image hits", _mean("image_hits"), lambda value: f"{100 * value:.0f} %", apart=False),
)
_WITHOUT_PAUSES = _Column(
    "model_questions_per_second",
    "questions/s, model",
    _rate("model_questions_per_second"),
    lambda value: f"{value:.2f}",
)
"""If the model never waited for images or for answers to be stored."""
