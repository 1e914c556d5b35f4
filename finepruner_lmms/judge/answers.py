"""The answers of a plain lmms-eval run: a file of their own, written before anybody judges them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from finepruner_lmms.judge import mmvet
from finepruner_lmms.judge.judgements import Judgements
from finepruner_lmms.judge.mmvet import Entry
from finepruner_lmms.judge.scoring import MMVET, Progress, Scorer
from finepruner_lmms.judge.settings import JudgeServer


class AnswersError(ValueError):
    """A file of answers that cannot be judged."""


def write_answers(entries: Sequence[Entry], output: str | None) -> Path:
    """Write answers to a new file in `<output>/mmvet/`, or in our cache where a run has no output; returns the file."""
    from finepruner_lmms.files import cache_dir

    folder = (cache_dir() if output is None else Path(output)) / "mmvet"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    file = folder / f"answers-{stamp}-{os.getpid()}.jsonl"
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    with file.open("x", encoding="utf-8") as target:
        target.write(lines)
        target.flush()
        os.fsync(target.fileno())
    return file


def read_answers(file: Path) -> list[Entry]:
    """The answers in a file of ours, or in the samples that lmms-eval logs. `AnswersError` naming file and line."""
    entries = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnswersError(f"{file}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            entry = value.get("gpt_eval_score", value)
            mmvet.check_entries([entry])
        except (ValueError, AttributeError) as error:
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
    target = file.with_name(f"{file.name}.score.json")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(json.dumps(outcome, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.replace(target)
    return outcome, judged
