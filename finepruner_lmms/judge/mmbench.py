"""MMBench: the judge finds the option that an answer in words means, where no letter can be read from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from finepruner_lmms.benchmarks.mmbench import LETTERS, aggregate, options_of, static_letter
from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.judge.judging import Case, require_fields

_FIELDS = ("index", "question", "answer", "prediction", *LETTERS)
_NONE = "E"
_INSTRUCTIONS = (
    "A multiple-choice question was answered in words. Say which option means the same as the answer. Reply with the "
    f"option's letter alone, or with {_NONE} if the answer means none of the options.\n"
)

Entry = dict[str, Any]
"""A row of the circular score, in lmms-eval's names: `index`, `question`, `answer`, `prediction`, `A` to `D`."""


def case(entry: Entry) -> Case | None:
    """What the judge is asked; None where a letter can be read, or nothing was answered.

    Its value is the letter of the option that the answer means, or "E", which is never right.
    """
    answer = str(entry["prediction"])
    if not answer.strip() or static_letter(entry) is not None:
        return None
    options = options_of(entry)
    shown = " ".join(f"{name}. {text}" for name, text in options.items())
    prompt = f"{_INSTRUCTIONS}Question: {entry['question']}\nOptions: {shown}\nAnswer: {answer}\nLetter:"
    known = [*options, _NONE]

    def read(reply: str) -> str:
        said = reply.strip().strip("*`\"'().:").strip()
        if said not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return said

    fingerprint = hashlib.sha256(_INSTRUCTIONS.encode()).hexdigest()[:12]
    return Case(str(entry["index"]), answer, prompt, fingerprint, read)


def check_entries(entries: Sequence[Entry]) -> None:
    """`ValueError` naming what is missing in an answered question."""
    require_fields(entries, _FIELDS)


def totals(entries: Sequence[Entry]) -> dict[str, float]:
    """The circular score in percent, with the letters that were judged; `FieldError` for one that is no option."""
    for entry in entries:
        if "letter" in entry and entry["letter"] not in (known := [*options_of(entry), _NONE]):
            problem = f"the letter of {entry['index']} is {show(entry['letter'])}; expected one of {', '.join(known)}"
            raise FieldError("mmbench", problem, value=entry)
    return {"total": aggregate(entries)}
