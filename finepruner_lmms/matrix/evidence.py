"""What a result rests on: its own checksum, the sha256 of its samples, and figures that these give again.

To score ten thousand samples anew takes a fifth of a second, so that what was verified is remembered beside them, in
`verified.json`: of which file (size, times and inode), with which record. A file that is touched, copied or replaced is
verified again; so is one whose record changed by a byte. What this memory holds is never shown, and it may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finepruner_lmms.errors import first_line
from finepruner_lmms.files import parse_json, parse_json_lines, read_bytes, write_bytes
from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.measures import benchmark_for, has_samples
from finepruner_lmms.matrix.records import Answered, Result, Sample

_MEMORY = "verified.json"
_RULES = 2
"""What is remembered under older rules is verified again; to be raised when `verify` looks at more."""
_SAME = 1e-6
JACKKNIFE = 4
"""From this schema on standard errors are jackknifed; older ones were drawn, and their checksum alone guards them."""


# -- checksums --------------------------------------------------------------------------------------------------------


def checksum(record: Mapping[str, Any]) -> str:
    """The sha256 of a record's content but for its own checksum, however it is laid out."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return digest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def digest(content: bytes) -> str:
    """The sha256 of a content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


# -- what was verified ------------------------------------------------------------------------------------------------


class Memory:
    """Which files of a cell's folder were verified, and with which record. Damage to it costs time, nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            value = parse_json(read_bytes(folder / _MEMORY, 1 << 16))
            if isinstance(value, dict) and value.get("rules") == _RULES and isinstance(value.get("files"), dict):
                self._files = value["files"]

    def holds(self, name: str, record: str) -> bool:
        """Whether this very file was verified with the record of that digest."""
        return self._files.get(name) == _entry(self._folder / name, record)

    def add(self, names: Sequence[str], record: str) -> None:
        """Remember files that were verified, or written just now; not where there is no place to."""
        with suppress(OSError):
            self._files = self._files | {name: _entry(self._folder / name, record) for name in names}
            content = json.dumps({"rules": _RULES, "files": self._files}).encode()
            write_bytes(self._folder / _MEMORY, content, lasting=False)


def _entry(path: Path, record: str) -> dict[str, Any] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    found = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    return found | {"inode": status.st_ino, "record": record}


# -- verifying --------------------------------------------------------------------------------------------------------


def flaw_of_lines(folder: Path, name: str, about: Answered) -> tuple[str, list[Sample]]:
    """What is wrong with the file of a record's lines, or "" and the lines."""
    try:
        content = read_bytes(folder / name)
    except FileNotFoundError:
        return f"{name} is missing", []
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}", []
    if digest(content) != about.samples_sha256:
        return f"{name} was changed after the result was written (its sha256 is another)", []
    try:
        lines = parse_json_lines(content, name)
    except ValueError as error:
        return first_line(error), []
    if len(lines) != about.answered:
        return f"{name} has {len(lines)} lines, but {about.answered} questions were answered", []
    return "", lines


def flaw_of_submission(folder: Path, result: Result) -> str:
    """What is wrong with the file for a server, or ""."""
    assert result.submission is not None
    name = result.submission.file
    try:
        if digest(read_bytes(folder / name)) == result.submission.sha256:
            return ""
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return f"{name} was changed after the result was written (its sha256 is another)"


def flaw_of_figures(task: str, result: Result, lines: Sequence[Sample]) -> str:
    """What a result says otherwise than its samples, or "": metric, percent, standard error and a judge's totals."""
    try:
        with np.errstate(all="ignore"):
            numbers, images = _figures(task, result, lines)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return f"samples.jsonl cannot be scored: {type(error).__name__}: {first_line(error)}"
    if len(images) < len(lines):
        return f"samples.jsonl: {len(lines) - len(images)} lines have the doc_id of another"
    stated = dict(result.metrics) | {"percent": result.percent, "standard_error": result.standard_error}
    for name, found in numbers.items():
        if name == "standard_error" and result.schema_version < JACKKNIFE:
            continue
        if not _equal(stated.get(name), found):
            return f"result.json: {name} is {stated.get(name)!r}, but its samples give {found!r}"
    return ""


def _figures(task: str, result: Result, lines: Sequence[Sample]) -> tuple[dict[str, float | None], dict[int, str]]:
    """The figures that are shown of a result, by name, and the image of each question."""
    benchmark = benchmark_for(task, result)
    metric = benchmark.metric.partition(",")[0]
    images = {line["doc_id"]: line["image"] for line in lines}
    if not has_samples(result):
        return {"standard_error": None}, images
    logged = [{**line, metric: line["score"]} for line in lines]
    value, percent, error = benchmark.figures(logged, images)
    found: dict[str, float | None] = {benchmark.metric: value, "percent": percent, "standard_error": error}
    if result.measure is not None and result.measure.scale is None:
        found["percent"] = None
    found |= {name: value for name, value in benchmark.beside_of(logged).items() if name in result.metrics}
    if result.judge is not None:
        from finepruner_lmms.judge.scoring import RULES

        totals = RULES[task].totals([line["score"] for line in lines])
        found |= {benchmark.metric: totals.pop("total"), **totals}
    return found, images


def _equal(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is None and found is None
    return math.isclose(stated, found, rel_tol=_SAME, abs_tol=1e-9)
