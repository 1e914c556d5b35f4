"""Finished cells that are none of a study's: of other limits or rows, by which its time is reckoned all the same.

`run --limit 40` and then the whole: the cells of the second are others, but the first say how fast this machine is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from finepruner_lmms.matrix.config import Matrix
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.records import Asked, Damage, Result, load
from finepruner_lmms.matrix.store import Store


class _Spec(Asked):
    """Of a cell, as `Cell.spec` writes it down."""

    method: str
    budget: int | str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = None


class Earlier(Result):
    """`result.json` of such a cell."""

    spec: _Spec

    def schedule(self, layers: int, tokens: int) -> tuple[int, ...]:
        """The visual tokens entering each layer; `ValueError` for a method that is not here any more."""
        from finepruner_lmms.pruners import build_pruner

        pruner = build_pruner(self.spec.method, budget=self.spec.budget, **self.spec.parameters)
        return tuple(pruner.schedule(layers, tokens))


def earlier_results(matrix: Matrix, store: Store, study: Study) -> Iterator[tuple[tuple[int, ...], Earlier]]:
    """The schedule and the result of each finished cell in `store` that is none of the study's, of the same model."""
    mine = {cell.id for cell in study.cells}
    models = {(cell.identity.checkpoint.partition(" ")[0], cell.identity.dtype) for cell in study.cells}
    for file in sorted(store.root.glob("cells/*/result.json")):
        if file.parent.name.rpartition("-")[2] in mine:
            continue
        try:
            result = load(Earlier, file)
            if result is None or result.seconds is None or (identity := result.spec.identity) is None:
                continue
            if (identity.checkpoint.partition(" ")[0], identity.dtype) in models:
                yield result.schedule(matrix.num_layers, matrix.num_visual_tokens), result
        except (Damage, ValueError):  # it is no part of this study, and `status` does not show it either
            continue
