"""The answers of a cell as they come, in files that outlive a kill.

Each process writes a file of its own and reads those of all, of this attempt and of earlier ones, however many
processes these had. A batch is one write: a line for each answer, and a last one with the time of all, without which
they do not count. So an answer always has its time, and a kill costs the batch that was being answered.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from lmms_eval.api.instance import GenerationResult, TokenCounts
from loguru import logger
from pydantic import TypeAdapter, ValidationError

from finepruner_lmms.errors import first_line
from finepruner_lmms.files import sync_folder
from finepruner_lmms.lmms.meter import BatchTime
from finepruner_lmms.lmms.sealed_lines import Seal

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """An answer: its `text`, the tokens of prompt and answer, and what the prefill took.

    `words` are the prompt's tokens but for the visual ones, `entering` the visual tokens entering each decoder layer.
    `trace` is what was recorded of the visual tokens (`lmms.traced`), of the questions that are recorded.
    """

    text: str
    input_tokens: int
    output_tokens: int
    words: int
    entering: tuple[int, ...]
    trace: dict[str, Any] | None = None

    def result(self) -> GenerationResult:
        """As lmms-eval takes it."""
        return GenerationResult(
            self.text, TokenCounts(input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        )


@dataclass(frozen=True)
class Origin:
    """Who answers: a process of a launch. `session` is the launch's, `device` what it runs on, in words."""

    session: str
    rank: int
    processes: int
    device: str


@dataclass(frozen=True)
class Batch:
    """A batch that was answered: by whom, and what it took."""

    origin: Origin
    time: BatchTime


@dataclass(frozen=True)
class Written:
    """What a journal holds: each answer once, by key, and the batches that they came in.

    Answers whose keys are in `drawn` were drawn at random, so that another attempt must not take them over.
    """

    answers: dict[str, Answer]
    batches: tuple[Batch, ...]
    drawn: frozenset[str] = frozenset()

    @property
    def lengths(self) -> Counter[tuple[int, tuple[int, ...]]]:
        """How often a prompt had so many text tokens, and these visual tokens entering the decoder's layers.

        In an order of their own, so that sums over them do not depend on who answered first.
        """
        found = Counter((answer.words, answer.entering) for answer in self.answers.values())
        return Counter(dict(sorted(found.items())))

    @property
    def traces(self) -> dict[int, dict[str, Any]]:
        """What was recorded, by the question's number in the whole data set; of several rounds the last."""
        found = [answer.trace for answer in self.answers.values() if answer.trace is not None]
        return {record["doc_id"]: record for record in found if isinstance(record.get("doc_id"), int)}


class Journal:
    """The journal in `folder`, of answers of the `owner` (`Identity.text`); `origin` says who writes.

    Answers are found by `question_key`. What is damaged, or was written for another owner, is as if it were not there.
    """

    def __init__(self, folder: Path, owner: str, origin: Origin) -> None:
        self._folder, self._seal, self._origin = folder, Seal(owner), origin
        self._own: Path | None = None
        self._whole = True  # whether the file ends with a whole line
        self._known: dict[str, Answer] | None = None

    @property
    def known(self) -> dict[str, Answer]:
        """What was answered, by key; what other processes write after it was first asked for is not seen."""
        if self._known is None:
            written = _read(self._folder, self._seal, tell=self._origin.rank == 0)
            self._known = {key: answer for key, answer in written.answers.items() if key not in written.drawn}
        return self._known

    def lacks(self, keys: Iterable[str]) -> bool:
        """Whether any of these is not answered."""
        return any(key not in self.known for key in keys)

    def add(self, keys: Sequence[str], answers: Sequence[Answer], time: BatchTime, drawn: bool = False) -> None:
        """A batch of answers, one for each key; they are on disk when this returns."""
        known, batch = self.known, uuid4().hex[:12]
        new = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in known}
        if not new:
            return
        records: list[dict[str, Any]] = [
            {"batch": batch, "key": key, "drawn": drawn, "answer": asdict(answer)} for key, answer in new.items()
        ]
        records.append({"batch": batch, "origin": asdict(self._origin), "time": asdict(time)})
        self._write("".join(self._seal.close(record) + "\n" for record in records))
        if not drawn:
            known.update(new)

    def _write(self, text: str) -> None:
        if self._own is None:
            self._own = _new_file(self._folder, self._origin.rank)
        if not self._whole:  # writing failed before
            text = f"\n{text}"
        self._whole = False
        # closed each time: on a network file system others see what was written before
        with self._own.open("ab", buffering=0) as file:
            content = memoryview(text.encode())
            while content:
                content = content[file.write(content) or 0 :]
            os.fsync(file.fileno())
        self._whole = True


def read_journal(folder: Path, owner: str) -> Written:
    """What all processes wrote for this owner."""
    return _read(folder, Seal(owner), tell=True)


def question_key(task: str, split: str, doc_id: Any, question: str, decoding: dict[str, Any]) -> str:
    """What tells one question of a cell from another, and from the same one asked otherwise."""
    text = json.dumps([task, split, doc_id, question, sorted(decoding.items())], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def set_aside(path: Path) -> None:
    """Move what is damaged out of the way, to a name of its own beside it."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            logger.warning(f"{path} is set aside as {aside.name}")
            with suppress(FileNotFoundError):  # another process was first
                path.rename(aside)
            return


def _new_file(folder: Path, rank: int) -> Path:
    """A file that nobody else writes to, whoever answers the same cell at the same time."""
    if folder.exists() and not folder.is_dir():
        set_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        file = folder / (f"answers-rank{rank}" + (f"-{number}" if number > 1 else "") + ".jsonl")
        try:
            file.open("xb").close()
        except FileExistsError:
            continue
        sync_folder(folder)
        return file
    raise AssertionError("there is always another number")


def _read(folder: Path, seal: Seal, tell: bool) -> Written:
    answers: dict[str, Answer] = {}
    batches: list[Batch] = []
    drawn: set[str] = set()
    # the latest attempt first: what was answered twice is its
    for file in sorted(folder.glob("answers-rank*.jsonl"), key=lambda file: (len(file.name), file.name), reverse=True):
        try:
            *lines, _ = file.read_bytes().split(b"\n")  # the last one has no end: cut off by a kill, or nothing
        except OSError as error:
            if tell:
                logger.warning(f"{file} cannot be read ({first_line(error)}); its questions are answered again")
            continue
        opened = [seal.open(line) for line in lines if line]
        records = [record for record in opened if record is not None]
        damaged = len(opened) - len(records)
        if damaged and tell:
            logger.warning(f"{file}: {damaged} lines are damaged or of other settings; these questions are asked again")
        of_batch: dict[Any, dict[str, tuple[Answer, bool]]] = {}
        for record in records:
            batch, key = record.get("batch"), record.get("key")
            if key is not None:
                if (answer := _parsed(_ANSWER, record.get("answer"))) is not None:
                    of_batch.setdefault(batch, {})[key] = answer, bool(record.get("drawn"))
                continue
            origin, time = _parsed(_ORIGIN, record.get("origin")), _parsed(_TIME, record.get("time"))
            new = {key: found for key, found in of_batch.pop(batch, {}).items() if key not in answers}
            if new and origin is not None and time is not None:
                answers |= {key: answer for key, (answer, _) in new.items()}
                drawn |= {key for key, (_, was_drawn) in new.items() if was_drawn}
                batches.append(Batch(origin, time))
    return Written(answers, tuple(batches), frozenset(drawn))


_ANSWER, _ORIGIN, _TIME = TypeAdapter(Answer), TypeAdapter(Origin), TypeAdapter(BatchTime)


def _parsed(kind: TypeAdapter[T], value: Any) -> T | None:
    """None in what another version wrote otherwise."""
    try:
        return kind.validate_python(value)
    except ValidationError:
        return None
