"""Which line of the leaderboard each row of the studies is part of."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.store import Store


def keys_of_rows(stores: Sequence[Store], board: Leaderboard) -> list[str | None]:
    """By row, over all studies: the key of the line that shows it, alone or with other seeds; None where none does."""
    shown = {(line.study, row): line.key for line in board.lines for row in line.rows}
    return [
        shown.get((name, row))
        for store, name in zip(stores, board.studies, strict=True)
        for row in range(len(store.study().rows))
    ]
