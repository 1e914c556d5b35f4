"""Answers of a cell that were computed ahead of its evaluation, as JSON lines that survive a kill.

lmms-eval's own cache of a cell is open only while the cell is evaluated. What another cell's evaluation answers for it
waits here, beside that cache, and goes with it when the cell is done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts

from finepruner_lmms.files import split_lines


@dataclass(frozen=True)
class Answer:
    """An answer: its `text`, the tokens of prompt and answer, and what the prefill took.

    `words` are the prompt's tokens but for the visual ones, `entering` the visual tokens entering each decoder layer.
    """

    text: str
    input_tokens: int
    output_tokens: int
    words: int
    entering: tuple[int, ...]

    def result(self) -> GenerationResult:
        """As lmms-eval takes it."""
        return GenerationResult(
            self.text, TokenCounts(input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        )


class Journal:
    """The answers of a cell in `folder`: every process writes a file of its own, and reads those of all.

    They are found by `question_key`: the number of processes may change from one attempt to the next.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._own = folder, folder / f"ahead-rank{rank}.jsonl"
        self._whole = False  # whether the file is known to end with a whole line
        self._known: dict[str, Answer] | None = None

    @property
    def known(self) -> dict[str, Answer]:
        """What was answered, by key; what other processes write after it was first asked for is not seen."""
        if self._known is None:
            self._known = {}
            for file in sorted(self._folder.glob("ahead-rank*.jsonl")):
                for line in split_lines(file.read_text(encoding="utf-8", errors="replace")):
                    self._known.update(_parsed(line))
        return self._known

    def lacks(self, keys: Iterable[str]) -> bool:
        """Whether any of these is not answered."""
        return any(key not in self.known for key in keys)

    def add(self, keys: Sequence[str], answers: Sequence[Answer]) -> None:
        """Answers, one for each key; they are on disk when this returns."""
        known = self.known
        lines = []
        for key, answer in zip(keys, answers, strict=True):
            if key not in known:
                known[key] = answer
                lines.append(json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False))
        if not lines:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._own.open("a", encoding="utf-8") as file:
            if not self._whole:
                file.write("\n")  # after a line that may have been cut off
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._whole = True


def _parsed(line: str) -> dict[str, Answer]:
    """The answer in a line by its key; nothing in one that was cut off."""
    try:
        entry = json.loads(line)
        key = entry.pop("key")
        return {key: Answer(**entry | {"entering": tuple(entry["entering"])})}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def question_key(task: str, split: str, doc_id: Any, question: str, decoding: dict[str, Any]) -> str:
    """What tells one question of a cell from another, and from the same one asked otherwise."""
    text = json.dumps([task, split, doc_id, question, sorted(decoding.items())], default=str)
    return hashlib.sha256(text.encode()).hexdigest()
