"""Which cells of a study a judge scores."""

from __future__ import annotations

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.judge.settings import Judge, JudgeServer, judge_name
from finepruner_lmms.matrix.plan import Cell, Study


def assign(study: Study, judge: Judge | None) -> Study:
    """A study with `judge` in charge: its judged cells are done only with this one's scores.

    Imported rows stay with whoever scored them.
    """
    name = None if judge is None else judge_name(judge)
    cells = []
    for cell in study.cells:
        if cell.method.imported is None:
            by_judge = _is_judged(cell, judge)
            cell = cell.model_copy(update={"judged": by_judge, "judge": name if by_judge else None})
        cells.append(cell)
    return study.model_copy(update={"judge": judge, "cells": tuple(cells)})


def _is_judged(cell: Cell, judge: Judge | None) -> bool:
    if cell.task in BENCHMARKS and BENCHMARKS[cell.task].judged:
        return True
    return isinstance(judge, JudgeServer) and cell.task in judge.also and not cell.submission  # its server scores it
