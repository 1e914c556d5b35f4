"""The judge in a matrix: which cells it scores, and how those that are answered and wait get their scores.

Each cell says it: one that is `judged` is scored by its `judge`, by any if that is None; another by its task alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.errors import FieldError
from finepruner_lmms.judge import mmvet
from finepruner_lmms.judge.answers import score_file
from finepruner_lmms.judge.judgements import Judgements
from finepruner_lmms.judge.scoring import RULES, Scorer
from finepruner_lmms.judge.settings import VARIABLE, Judge, JudgeServer, choose, from_environment
from finepruner_lmms.matrix.judged import assign
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.progress import MISSING, display_for, score_text
from finepruner_lmms.matrix.records import Result, Sample
from finepruner_lmms.matrix.results import Json, find_answers, keep_answers, read_lines, write_result
from finepruner_lmms.matrix.runner import Display
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import console, markdown

Scored = tuple[Json, list[Sample]]
"""A result, and the samples that it is made of."""


def keep_scores(store: Store, study: Study) -> Study:
    """A study in which the cells that another than its judge has scored are done with that score.

    So the scores that there are stay, and are shown, until the judge has scored those cells as well.
    """
    cells = [_as_scored(store, cell) or cell for cell in _waiting(store, study)]
    return _with_cells(study, cells)


def judge_cells(store: Store, study: Study, judge: Judge | None, display: Display) -> None:
    """Score the cells that wait, but for those that are to be judged later. `JudgeError` if an answer could not be.

    What was judged until then is kept in the judgements file, and in cells that had no score. A score that a cell has
    from somebody else is replaced only when the judge has judged all cells: until then what `store` says of the study
    stays. Then it is `study`.
    """
    waiting = _waiting(store, study)
    for cell in waiting:
        if not cell.judged:
            _replace(store, cell, _answers(store, cell))  # these say what the score was before they were judged
            display.note(f"scored {cell.label} without a judge: {score_text(_done(store, cell))}")
    judged = [cell for cell in waiting if cell.judged]
    if judge is None or judge == "later" or not judged:
        store.save_study(study)
        return
    with Scorer(judge, Judgements(store.root / "judgements.jsonl")) as scorer:
        later = []
        for cell in judged:
            display.cell_started(cell.label)
            scored = _score(store, cell, scorer, display.cell_progress)
            if _as_scored(store, cell) is None:
                _write(store, cell, scored)
                display.note(f"judged {cell.label}: {score_text(_done(store, cell))}")
            else:
                later.append(cell)
        for cell in later:  # all is in the judgements file, so that nobody is asked any more
            _replace(store, cell, _score(store, cell, scorer))
            display.note(f"judged {cell.label} anew: {score_text(_done(store, cell))}")
    store.save_study(study)


def _waiting(store: Store, study: Study) -> list[Cell]:
    states = zip(study.cells, store.states(study.cells), strict=True)
    return [cell for cell, state in states if state.name == "waiting"]


def _as_scored(store: Store, cell: Cell) -> Cell | None:
    """The cell under the judge who gave it the score that it has, or none; None where it has no valid score."""
    by_any = cell.model_copy(update={"judged": True, "judge": None})
    state = store.states([by_any])[0]
    if state.name == "done" and state.result is not None and state.result.judge is not None:
        return by_any.model_copy(update={"judge": state.result.judge.name})
    by_none = by_any.model_copy(update={"judged": False})
    judged = cell.task in BENCHMARKS and BENCHMARKS[cell.task].judged
    if judged or store.states([by_none])[0].name != "done":
        return None
    return by_none


def _with_cells(study: Study, cells: Sequence[Cell]) -> Study:
    changed = {cell.id: cell for cell in cells}
    return study.model_copy(update={"cells": tuple(changed.get(cell.id, cell) for cell in study.cells)})


def _replace(store: Store, cell: Cell, scored: Scored) -> None:
    """Give a cell another score, and let the study that is shown say at once who gave it."""
    _write(store, cell, scored)
    store.save_study(_with_cells(store.study(), [cell]))


def _write(store: Store, cell: Cell, scored: Scored) -> None:
    folder = store.cell_dir(cell)
    keep_answers(folder, cell)
    write_result(folder, *scored)


def _done(store: Store, cell: Cell) -> Result:
    result = store.states([cell])[0].result
    assert result is not None, "it was written just now"
    return result


def _answers(store: Store, cell: Cell) -> Scored:
    found = find_answers(store.cell_dir(cell), cell)
    assert found is not None, "a cell waits only with its answers there"
    about, file = found
    return about, read_lines(file)


def _score(store: Store, cell: Cell, scorer: Scorer, on_progress: Callable[[int, int], None] | None = None) -> Scored:
    """What the judge makes of a cell's answers; nothing is written but the judgements."""
    benchmark, rules = BENCHMARKS[cell.task], RULES[cell.task]
    answered, lines = _answers(store, cell)
    metric = benchmark.metric.partition(",")[0]
    entries, about = scorer.score(rules, [line["score"] for line in lines], on_progress)
    samples: list[Sample] = [{**line, "score": entry} for line, entry in zip(lines, entries, strict=True)]
    logged = [{**sample, metric: sample["score"]} for sample in samples]
    totals = rules.totals(entries)
    result = answered | {
        "metrics": {benchmark.metric: totals.pop("total"), **totals, **benchmark.beside_of(logged)},
        "percent": benchmark.percent(logged),
        "standard_error": benchmark.standard_error(logged, {s["doc_id"]: s["image"] for s in samples}),
        "judge": about,
    }
    return result, samples


# -- the command `judge` ----------------------------------------------------------------------------------------------


def judge_run(root: Path, options: Mapping[str, Any], exact: bool) -> str:
    """Judge what waits in the directory of a run, by the judge that `options` or the run names; scores, as a table."""
    store = Store(root)
    study = store.study()
    judge = choose(options, exact, _known(study.judge))
    if isinstance(judge, JudgeServer) and judge.mmbench and not judge.also & set(study.tasks):
        raise FieldError("--mmbench", f"the run has neither of {', '.join(sorted(judge.also))}", fix="leave it out")
    with store.lock():
        study = assign(study, judge)
        with display_for(console(stderr=True), len(study.cells), 0) as display:
            judge_cells(store, study, judge, display)
    rows = _capability_rows(store, store.study())
    return _table(rows) if rows else "no answers are there to be judged\n"


def judge_file(file: Path, options: Mapping[str, Any], exact: bool) -> str:
    """Judge a file of answers; its scores, as a table."""
    if options.get("mmbench") is not None:
        raise FieldError("--mmbench", "is for the directory of a run; a file holds answers to MM-Vet")
    judge = choose(options, exact, _known(None))
    with display_for(console(stderr=True), 1, 0) as display:
        display.cell_started(file.name)
        outcome, _ = score_file(file, judge, display.cell_progress)
    return _table([{"answers": file.name} | _shown(outcome["scores"])])


def _known(judge: Judge | None) -> Judge | None:
    """Who judges where the command line does not say: `judge`, whom the run names, or else the environment."""
    return from_environment() if judge in (None, "later") and VARIABLE in os.environ else judge


def _capability_rows(store: Store, study: Study) -> list[dict[str, str]]:
    rows = []
    for cell, state in zip(study.cells, store.states(study.cells), strict=True):
        if state.result is not None and cell.judged:
            metrics = state.result.metrics
            rows.append({"row": cell.label} | _shown(metrics | {"total": metrics[BENCHMARKS[cell.task].metric]}))
    return rows


def _shown(scores: Json) -> dict[str, str]:
    return {name: f"{scores[name]:.1f}" for name in ("total", *mmvet.CAPABILITIES, "spread") if name in scores}


def _table(rows: list[dict[str, str]]) -> str:
    import pandas as pd

    shown = [{markdown(name): markdown(value) for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(shown, dtype=object).fillna(MISSING)
    align = ["left"] + ["right"] * (len(frame.columns) - 1)
    return f"{frame.to_markdown(index=False, colalign=align, disable_numparse=True)}\n"
