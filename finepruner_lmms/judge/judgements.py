"""The judgements file: one JSON object per line, added as each judgement comes, so that none is ever paid for twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finepruner_lmms.claims import Locked, lock
from finepruner_lmms.errors import Failure
from finepruner_lmms.files import split_lines


class JudgementsError(Failure, ValueError):
    """A judgements file that cannot be used."""


class Judgement(BaseModel):
    """What a judge said to one answer, and what was made of it.

    `value` is the score or letter that `reply` means; `judge` is the name it was asked by, `model` what the server
    calls itself; `rubric` identifies the instructions it was given.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    document: str
    answer: str
    value: Any
    reply: str
    judge: str
    model: str
    host: str
    rubric: str
    temperature: float
    date: str
    usage: dict[str, Any]


def judgement_key(document: str, judge: str, prompt: str, time: int = 0) -> str:
    """What a judgement is found by: document, judge, all that it is shown, and how often it was asked before."""
    again = [time] if time else []
    return hashlib.sha256(json.dumps([document, judge, prompt, *again]).encode()).hexdigest()[:24]


class Judgements:
    """An open judgements file, held by one process at a time. A context manager; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Judgement] = {}
        self._lines: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Judgements:
        with ExitStack() as held:
            try:
                held.enter_context(lock(self.path.with_name(f"{self.path.name}.lock")))
            except Locked as error:
                problem = f"another process is judging ({error.holder}); wait for it to end"
                raise JudgementsError(f"{self.path}: {problem}") from None
            self._file = held.enter_context(self.path.open("a+b"))
            self._load()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def get(self, key: str) -> Judgement | None:
        """The judgement of that key, if there is one."""
        return self._known.get(key)

    def place(self, judgement: Judgement) -> str:
        """Where a judgement stands, as `file:line`."""
        return f"{self.path}:{self._lines[judgement.key]}"

    def add(self, judgement: Judgement) -> None:
        """Store a judgement. It is on disk when this returns."""
        line = json.dumps(judgement.model_dump(), ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._remember(judgement)

    def _load(self) -> None:
        self._file.seek(0)
        whole, newline, torn = self._file.read().rpartition(b"\n")
        if torn:  # cut off while it was written: that one is judged again
            self._file.truncate(len(whole) + len(newline))
        for line in split_lines((whole + newline).decode(errors="replace")):
            try:
                judgement = Judgement.model_validate_json(line)
            except ValidationError:
                place = f"{self.path}:{self._count + 1}"
                raise JudgementsError(f"{place}: not a judgement; mend or delete the line") from None
            self._remember(judgement)

    def _remember(self, judgement: Judgement) -> None:
        self._count += 1
        self._known[judgement.key], self._lines[judgement.key] = judgement, self._count
