"""The judgements file: a JSON object a line, added as each judgement comes, so that none is ever paid for twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

Judgement = dict[str, Any]


class JudgementsError(ValueError):
    """A judgements file that cannot be used."""


def judgement_key(document: str, judge: str, prompt: str) -> str:
    """What a judgement is found by: the document, the judge, and all that it is shown, the answer among it."""
    return hashlib.sha256(json.dumps([document, judge, prompt]).encode()).hexdigest()[:24]


class Judgements:
    """An open judgements file, held by one process at a time. A context manager; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Judgement] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Judgements:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._file.close()
            raise JudgementsError(f"{self.path}: another process is judging; wait for it to end") from None
        except JudgementsError:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, key: str) -> Judgement | None:
        """The judgement of that key, if there is one."""
        return self._known.get(key)

    def add(self, judgement: Judgement) -> None:
        """Store a judgement, which has its `key` in it. It is on disk when this returns."""
        line = json.dumps(judgement, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._known[judgement["key"]] = judgement

    def _load(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole, newline, torn = content.rpartition(b"\n")
        if torn:  # cut off while it was written: that one is judged again
            self._file.truncate(len(whole) + len(newline))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                judgement = json.loads(line)
                self._known[judgement["key"]] = judgement
            except (ValueError, KeyError, TypeError):
                raise JudgementsError(f"{self.path}:{number}: not a judgement; mend or delete the line") from None
