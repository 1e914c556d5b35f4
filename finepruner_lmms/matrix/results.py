"""What came of a cell: `result.json`, `samples.jsonl` and what a judge scores, written, read and checked."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finepruner_lmms.files import read_json_lines, set_aside, write_bytes, write_json, write_json_lines
from finepruner_lmms.matrix.attempts import end_attempt
from finepruner_lmms.matrix.evidence import (
    Memory,
    checksum,
    digest,
    flaw_of_figures,
    flaw_of_lines,
    flaw_of_submission,
)
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Answered, Damage, Result, Sample, Submission, load_json, parse, read
from finepruner_lmms.sources import short_hash

SCHEMA = 4
_READ = (2, 3, SCHEMA)
"""Results of schema 2 have no checksum; all else is verified as it is of new ones."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What the files of a cell come to: a valid `result`, or else answers that wait for a judge, or neither.

    `reason` says why there is no result, if there is something to say; `damaged` whether that is because a file is not
    the one that was written.
    """

    result: Result | None = None
    answers: tuple[Json, Path] | None = None
    reason: str = ""
    damaged: bool = False


def read_cell(folder: Path, cell: Cell) -> Found:
    """What is there of a cell.

    A result is valid if it is of this cell, its metric a number (or its submission there), as many questions answered
    as the task has, its samples and submission those that were written, its figures those that the samples give, and
    scored by whom the cell names: its `judge`, or any if that is None; nobody if not `judged`.
    """
    reason, damaged, scored = "", False, None
    try:
        scored = _verified_result(folder, cell)
    except Damage as damage:
        reason, damaged = str(damage), True
    if scored is not None:
        result = scored[1]
        if not (waits := _waits_for(cell, result)):
            return Found(result=result)
        reason = f"{result.answered} questions answered, waiting {waits}"
    try:
        answers = _answers(folder, cell, scored)
    except Damage as damage:
        answers = None
        reason, damaged = reason if damaged else str(damage), True
    if answers is not None and not reason:
        reason = f"{answers[0]['answered']} questions answered, waiting for the judge"
    return Found(answers=answers, reason=reason, damaged=damaged)


def find_answers(folder: Path, cell: Cell) -> tuple[Json, Path] | None:
    """What is known of a cell's answers before a judge scores them, and the file with a line each.

    They are what `write_answered` was told, or else samples that were scored without a judge. None where they are not
    there, or are no longer those.
    """
    scored = None
    with suppress(Damage):
        scored = _verified_result(folder, cell)
    with suppress(Damage):
        return _answers(folder, cell, scored)
    return None


def _answers(folder: Path, cell: Cell, scored: tuple[Json, Result] | None) -> tuple[Json, Path] | None:
    """As `find_answers`, next to what is known of a result; `Damage` where there were some."""
    try:
        if (answers := _verified_answers(folder, cell)) is not None:
            return answers
    except Damage:
        if scored is None or not _is_unjudged(scored[1]):
            raise
    return (scored[0], folder / "samples.jsonl") if scored is not None and _is_unjudged(scored[1]) else None


def _is_unjudged(result: Result) -> bool:
    return result.judge is None and result.submission is None


def check_result(folder: Path, cell: Cell) -> tuple[str, Result | None]:
    """The result if it is valid; otherwise what is wrong with it, or "" where there is none."""
    found = read_cell(folder, cell)
    return found.reason, found.result


def _verified_result(folder: Path, cell: Cell) -> tuple[Json, Result] | None:
    """The result and what its file holds, whoever scored it; None without a file, `Damage` if it is not valid."""
    if (content := read(folder / "result.json")) is None:
        return None
    raw = load_json(content, "result.json")
    result = parse(Result, raw, "result.json")
    _check_about(cell, raw, result, "result.json")
    metric = benchmark_for(cell.task, result).metric if not result.submission else ""
    numbers = {metric: result.metrics.get(metric)}  # the error may be None: not measured
    if result.measure is None or result.measure.scale is not None:
        numbers["percent"] = result.percent
    for name, value in () if result.submission else numbers.items():
        if value is None:
            raise Damage(f"result.json: {name} is None, not a number")
    _check_seal(raw, result, "result.json")
    files = ["samples.jsonl", *([result.submission.file] if result.submission else [])]
    memory, record = Memory(folder), digest(content)
    if not all(memory.holds(name, record) for name in files):
        flaw, lines = flaw_of_lines(folder, "samples.jsonl", result)
        if not flaw:
            flaw = (
                flaw_of_submission(folder, result) if result.submission else flaw_of_figures(cell.task, result, lines)
            )
        if flaw:
            raise Damage(flaw)
        memory.add(files, record)
    return raw, result


def _verified_answers(folder: Path, cell: Cell) -> tuple[Json, Path] | None:
    """What was answered before a judge scored it, and the file of the lines; None where there is none."""
    if (content := read(folder / "answered.json")) is None:
        return None
    raw = load_json(content, "answered.json")
    about = parse(Answered, raw, "answered.json")
    _check_about(cell, raw, about, "answered.json")
    _check_seal(raw, about, "answered.json")
    memory, record = Memory(folder), digest(content)
    if not memory.holds("answers.jsonl", record):
        flaw, _ = flaw_of_lines(folder, "answers.jsonl", about)
        if flaw:
            raise Damage(flaw)
        memory.add(["answers.jsonl"], record)
    return raw, folder / "answers.jsonl"


def _check_about(cell: Cell, raw: Json, about: Answered, name: str) -> None:
    """`Damage` unless a record is of this cell and all its questions were answered."""
    if about.schema_version not in _READ or about.id != cell.id:
        raise Damage(f"{name} is of {about.id!r}, schema {about.schema_version!r}")
    if about.spec.task != cell.task:
        raise Damage(f"{name}: its task is {about.spec.task!r}, not {cell.task!r}")
    if about.spec.identity is not None:
        identity = short_hash(json.dumps(raw["spec"]["identity"], sort_keys=True))  # of other versions, too
        if identity != about.id:
            raise Damage(f"{name}: its identity is that of {identity!r}, not of {about.id!r}")
    if about.answered != about.expected or about.expected <= 0:
        raise Damage(f"{name}: {about.answered} of {about.expected} questions answered")


def _check_seal(raw: Json, about: Answered, name: str) -> None:
    if about.checksum is None and about.schema_version == 2:
        return
    if about.checksum != checksum(raw):
        raise Damage(f"{name} was changed after it was written (its checksum is of another content)")


def _waits_for(cell: Cell, result: Result) -> str:
    """Whom a result must be scored anew by, or "" if that is who scored it."""
    judged = None if result.judge is None else result.judge.name
    before = "" if judged is None else f"; {judged!r} judged before"
    if not cell.judged:
        return before and f"to be scored without a judge{before}"
    if judged is None:
        return "for the judge"
    return "" if cell.judge in (None, judged) else f"for the judge {cell.judge!r}{before}"


def publish_submission(folder: Path, source: Path) -> Submission:
    """Put a file for a server beside where the result will be; what the result says of it."""
    content = source.read_bytes()
    target = folder / f"submission{source.suffix}"
    write_bytes(target, content)
    return Submission(file=target.name, bytes=len(content), sha256=digest(content))


def write_result(folder: Path, result: Json, samples: list[Sample]) -> Json:
    """Samples first, then the result: what makes a cell done comes last. Returns what the file holds."""
    written = _write_lines(folder, "result.json", result, "samples.jsonl", samples)
    end_attempt(folder, "done")
    return written


def write_answered(folder: Path, result: Json, answers: list[Sample]) -> None:
    """Keep the answers that a judge scores: `result` and `answers` lack nothing but what the judge says."""
    _write_lines(folder, "answered.json", result, "answers.jsonl", answers)
    end_attempt(folder, "answered")


def keep_answers(folder: Path, cell: Cell) -> tuple[Json, list[Sample]] | None:
    """What `find_answers` finds, and the lines; from now on they are in files of their own, which no score replaces.

    A damaged result is set aside for the score to come.
    """
    if (answers := find_answers(folder, cell)) is None:
        return None
    about, file = answers
    lines = read_lines(file)
    if file.name != "answers.jsonl":
        for name in ("answered.json", "answers.jsonl"):  # there only if they are damaged
            set_aside(folder / name)
        write_answered(folder, about, lines)
    elif read_cell(folder, cell).damaged:
        set_aside_results(folder)
    return about, lines


def set_aside_results(folder: Path) -> list[Path]:
    """Rename a result and its samples, since they are not what was written; returns their new names."""
    return [aside for name in ("result.json", "samples.jsonl") if (aside := set_aside(folder / name)) is not None]


def read_lines(path: Path) -> list[Sample]:
    """The objects of a file with one per line."""
    return read_json_lines(path)


def _write_lines(folder: Path, name: str, result: Json, lines_name: str, samples: list[Sample]) -> Json:
    content = write_json_lines(folder / lines_name, samples)
    evidence = {"schema_version": SCHEMA, "samples_bytes": len(content), "samples_sha256": digest(content)}
    written = evidence | result | evidence  # a result made of answers still has the evidence of these
    written["checksum"] = checksum(written)
    record = write_json(folder / name, written)
    submission = result.get("submission") or {}
    Memory(folder).add([lines_name, *([submission["file"]] if submission else [])], digest(record))
    return written
