"""The report of a run: one HTML file with its tables and pictures inside, and nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finepruner_lmms.files import write_text
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.head_report import (
    consensus_selections,
    damaged_selections,
    head_study,
    heads_alone,
    heads_chosen,
    picture,
)
from finepruner_lmms.matrix.report.leaderboard import leaderboard
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import html

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:13px}th,td{padding:.15rem .6rem;text-align:right}"
    "th:first-child,td:first-child{text-align:left}thead th{border-bottom:1px solid #999}"
    "tbody tr:hover{background:#f2f2f2}img{max-width:100%}.note{color:#666;font-size:13px}.warn{color:#a40}"
)


def build_report(store: Store) -> str:
    """The report as HTML. What is not done is left out or shown as missing; `StoreError` if nothing was planned."""
    study, board = store.study(), leaderboard(store)
    parts = [f"<h1>{html(study.name)}</h1>", _settings(study), *_leaderboard(board)]
    whole = leaderboard(store, merge_seeds=False)
    parts += [*head_study(store, study, whole), *heads_alone(whole), *heads_chosen(store, study)]
    parts += [*consensus_selections(store, study), *damaged_selections(store, study)]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html(study.name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _settings(study: Study) -> str:
    limit = study.cells[0].limit
    asked = f"{limit} questions per task" if limit else "all questions"
    most = "up to " if study.images_differ else ""
    sizes = f"{study.num_layers} decoder layers, {most}{study.num_visual_tokens} visual tokens"
    text = f"{study.model}, {sizes}, {asked}" if study.num_layers else study.model  # nothing was run, all is imported
    return f'<p class="note">{html(text)}</p>'


def _leaderboard(board: Leaderboard) -> Iterator[str]:
    from finepruner_lmms.matrix.report.costs import cost_frame, cost_notes
    from finepruner_lmms.matrix.report.plots import figure
    from finepruner_lmms.matrix.report.tables import notes, reading_frame

    yield "<h2>Leaderboard</h2>"
    if any(line.average is not None for line in board.lines):
        yield picture(figure(board), "Mean score against the budget, one line per method")
    yield reading_frame(board).html()
    yield f'<p class="note">{"<br>".join(html(note) for note in notes(board))}</p>'
    if any(line.cost or line.timed for line in board.lines):
        yield "<h2>Cost of prefill</h2>"
        yield cost_frame(board).html()
        yield f'<p class="note">{"<br>".join(html(note) for note in cost_notes(board))}</p>'


def write_report(store: Store, target: Path) -> None:
    """Write the report to `target`, as a whole or not at all."""
    text = build_report(store)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
