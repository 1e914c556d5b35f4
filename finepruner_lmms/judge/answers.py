"""The answers of a plain lmms-eval run: a file of their own, written before anybody judges them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from finepruner_lmms.errors import Failure
from finepruner_lmms.files import cache_dir, read_json_lines, write_json, write_json_lines
from finepruner_lmms.judge import mmvet
from finepruner_lmms.judge.judgements import Judgements
from finepruner_lmms.judge.mmvet import Entry
from finepruner_lmms.judge.scoring import MMVET, Progress, Scorer
from finepruner_lmms.judge.settings import JudgeServer


class AnswersError(Failure, ValueError):
    """A file of answers that cannot be judged."""


def write_answers(entries: Sequence[Entry], output: str | None) -> Path:
    """Write answers to a new file in `<output>/mmvet/`, or in our cache where a run has no output; returns the file."""
    folder = (cache_dir() if output is None else Path(output)) / "mmvet"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    file = folder / f"answers-{stamp}-{os.getpid()}.jsonl"
    write_json_lines(file, entries)
    return file


def read_answers(file: Path) -> list[Entry]:
    """The answers in a file of ours, or in the samples that lmms-eval logs. `AnswersError` naming file and line."""
    try:
        values = read_json_lines(file)
    except OSError as error:
        raise AnswersError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AnswersError(f"{error}; not a file of answers to MM-Vet") from error
    entries = []
    for number, value in enumerate(values, 1):
        entry = value.get("gpt_eval_score", value) if isinstance(value, dict) else value
        try:
            mmvet.check_entries([entry])
        except ValueError as error:
            raise AnswersError(f"{file}:{number}: not an answer to MM-Vet: {error}") from None
        entries.append(entry)
    if not entries:
        raise AnswersError(f"{file}: holds no answers")
    return entries


def score_file(
    file: Path, judge: JudgeServer | Literal["exact"], on_progress: Progress | None = None
) -> tuple[dict[str, Any], list[Entry]]:
    """Judge the answers in `file`; judgements go to `judgements.jsonl` beside it, the outcome to `<file>.score.json`.

    Returns the outcome, with `total` and the capabilities in percent, and the judged entries. `JudgeError` if an
    answer could not be judged: then there is no outcome, and another try judges only what is left.
    """
    entries = read_answers(file)
    with Scorer(judge, Judgements(file.with_name("judgements.jsonl"))) as scorer:
        judged, about = scorer.score(MMVET, entries, on_progress)
    outcome = {"scores": mmvet.totals(judged), "questions": len(judged), "judge": about}
    write_json(file.with_name(f"{file.name}.score.json"), outcome)
    return outcome, judged
