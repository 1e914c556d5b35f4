"""Which cells of a study a judge scores."""

from __future__ import annotations

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.judge.settings import Judge, JudgeServer, judge_name
from finepruner_lmms.matrix.plan import Cell, Study


def assign(study: Study, judge: Judge | None) -> Study:
    """A study with `judge` in charge: its judged cells are done only with this one's scores."""
    name = None if judge is None else judge_name(judge)
    judged = [_is_judged(cell, judge) for cell in study.cells]
    cells = [
        cell.model_copy(update={"judged": by_judge, "judge": name if by_judge else None})
        for cell, by_judge in zip(study.cells, judged, strict=True)
    ]
    return study.model_copy(update={"judge": judge, "cells": tuple(cells)})


def _is_judged(cell: Cell, judge: Judge | None) -> bool:
    if BENCHMARKS[cell.task].judged:
        return True
    return isinstance(judge, JudgeServer) and cell.task in judge.also and not cell.submission  # its server scores it
