"""The traces of a cell, in `traces.jsonl.gz`: of each recorded question which visual tokens were kept where.

They are written with the result, which holds the file's sha256. A result does not depend on them: where they are
damaged, there is nothing to be shown, and the score stays what it is.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finepruner_lmms.files import parse_json_lines, read_bytes, write_bytes
from finepruner_lmms.lmms.traced import Stage, Traced, from_record, heads_of, to_record
from finepruner_lmms.matrix.evidence import digest
from finepruner_lmms.matrix.records import Damage, Recorded, Result, load

FILE = "traces.jsonl.gz"
_MOST = 1 << 28
"""Bytes, unpacked: what is larger is no file of ours."""

__all__ = ["FILE", "Stage", "Traced", "read_heads", "read_traces", "write_records", "write_traces"]


def read_traces(cell_folder: Path) -> dict[int, Traced]:
    """What was recorded of a cell's questions, by their number in the whole data set; empty where nothing was.

    `Damage` where the file is not the one that was written, or holds something else.
    """
    try:
        traced = [from_record(record) for record in _records(cell_folder)]
    except ValueError as error:
        raise Damage(f"{FILE} holds something else: {error}") from None
    return {one.doc_id: one for one in traced}


def read_heads(cell_folder: Path) -> dict[int, tuple[int, ...]]:
    """Of `read_traces` the heads alone: those of each question at the first layer that chose any."""
    try:
        found = {record["doc_id"]: heads_of(record) for record in _records(cell_folder)}
    except (ValueError, KeyError, TypeError) as error:
        raise Damage(f"{FILE} holds something else: {error}") from None
    return {number: heads for number, heads in found.items() if heads}


def _records(cell_folder: Path) -> list[Any]:
    """What the lines of a cell's file hold; none where there is no such file."""
    try:
        content = read_bytes(cell_folder / FILE, _MOST)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Damage(f"{FILE} cannot be read: {error.strerror}") from None
    result = load(Result, cell_folder / "result.json")
    about = None if result is None else result.traces
    if about is not None and digest(content) != about.sha256:
        raise Damage(f"{FILE} was changed after the result was written (its sha256 is another)")
    try:
        return parse_json_lines(_unpacked(content), FILE)
    except (ValueError, zlib.error) as error:
        raise Damage(f"{FILE} holds something else: {error}") from None


def write_traces(cell_folder: Path, traces: Iterable[Traced]) -> Recorded:
    """Write what was recorded of a cell; returns what its result is to hold of it."""
    return write_records(cell_folder, {one.doc_id: to_record(one) for one in traces})


def write_records(cell_folder: Path, records: Mapping[int, Mapping[str, Any]]) -> Recorded:
    """`write_traces` of records, by number."""
    lines = "".join(f"{json.dumps(records[number], separators=(',', ':'))}\n" for number in sorted(records))
    content = gzip.compress(lines.encode(), compresslevel=6, mtime=0)
    write_bytes(cell_folder / FILE, content)
    return Recorded(file=FILE, questions=len(records), bytes=len(content), sha256=digest(content))


def _unpacked(content: bytes) -> bytes:
    unpacking = zlib.decompressobj(wbits=31)
    found = unpacking.decompress(content, _MOST)
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError(f"it is cut off, or more than {_MOST} bytes")
    return found
