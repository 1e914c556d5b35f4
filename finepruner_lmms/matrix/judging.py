"""The judge in a matrix: which cells it scores, and how those that are answered and wait get their scores.

Each cell says it: one that is `judged` is scored by its `judge`, by any if that is None; another by its task alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from finepruner_lmms.matrix.results import Json, keep_answers, write_result
from finepruner_lmms.matrix.runner import Display
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.output import console, markdown


def judge_cells(store: Store, study: Study, judge: Judge | None, display: Display) -> None:
    """Score the cells that wait, but for those that are to be judged later. `JudgeError` if an answer could not be.

    What was judged until then is kept: in finished cells, and in the judgements file of the output directory.
    """
    states = zip(study.cells, store.states(study.cells), strict=True)
    waiting = [cell for cell, state in states if state.name == "waiting"]
    for cell in waiting:
        if not cell.judged:
            display.note(f"scored {cell.label} without a judge: {score_text(_restore(store, cell))}")
    judged = [cell for cell in waiting if cell.judged]
    if judge is None or judge == "later" or not judged:
        return
    with Scorer(judge, Judgements(store.root / "judgements.jsonl")) as scorer:
        for cell in judged:
            display.cell_started(cell.label)
            result = _score_cell(store, cell, scorer, display)
            display.note(f"judged {cell.label}: {score_text(result)}")


def _answers(store: Store, cell: Cell) -> tuple[Json, list[Sample]]:
    found = keep_answers(store.cell_dir(cell), cell)
    assert found is not None, "a cell waits only with its answers there"
    return found


def _restore(store: Store, cell: Cell) -> Result:
    """The score that the answers had before they were judged."""
    result, samples = _answers(store, cell)
    return Result.model_validate(write_result(store.cell_dir(cell), result, samples))


def _score_cell(store: Store, cell: Cell, scorer: Scorer, display: Display) -> Result:
    benchmark, rules = BENCHMARKS[cell.task], RULES[cell.task]
    answered, lines = _answers(store, cell)
    metric = benchmark.metric.partition(",")[0]
    entries, about = scorer.score(rules, [line["score"] for line in lines], display.cell_progress)
    samples: list[Sample] = [{**line, "score": entry} for line, entry in zip(lines, entries, strict=True)]
    logged = [{**sample, metric: sample["score"]} for sample in samples]
    totals = rules.totals(entries)
    result = answered | {
        "metrics": {benchmark.metric: totals.pop("total"), **totals},
        "percent": benchmark.percent(logged),
        "standard_error": benchmark.standard_error(logged, {s["doc_id"]: s["image"] for s in samples}),
        "judge": about,
    }
    return Result.model_validate(write_result(store.cell_dir(cell), result, samples))


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
        store.save_study(study)
        with display_for(console(stderr=True), len(study.cells), 0) as display:
            judge_cells(store, study, judge, display)
    rows = _capability_rows(store, study)
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
    return {name: f"{scores[name]:.1f}" for name in ("total", *mmvet.CAPABILITIES) if name in scores}


def _table(rows: list[dict[str, str]]) -> str:
    import pandas as pd

    shown = [{markdown(name): markdown(value) for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(shown, dtype=object).fillna(MISSING)
    align = ["left"] + ["right"] * (len(frame.columns) - 1)
    return f"{frame.to_markdown(index=False, colalign=align, disable_numparse=True)}\n"
