"""Writing down what was selected for each sample, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.heads.consensus import Consensus
from finepruner_lmms.heads.consensus.report import monitor_record
from finepruner_lmms.pruners import Pruner


class Monitor:
    """An append-only JSON-lines file, or nothing where `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: IO[str] | None = None

    @classmethod
    def open(cls, setting: bool | str, rank: int) -> Monitor:
        """`False`: nothing; `True`: `finepruner-selections-rank<rank>.jsonl` here; a text: the folder to write to."""
        if setting is False:
            return cls(None)
        folder = Path() if setting is True else Path(setting)
        return cls(folder / f"finepruner-selections-rank{rank}.jsonl")

    @property
    def active(self) -> bool:
        """Whether anything is written."""
        return self.path is not None

    def __enter__(self) -> Monitor:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, record: dict[str, Any]) -> None:
        """Add one line, flushed, so that an interrupted run keeps what it saw."""
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()


def describe(
    trace: Trace, row: int, image: int | None, *, task: str, doc_id: int, pruner: Pruner
) -> list[dict[str, Any]]:
    """What was selected for one row of a call, as plain values: a record for each layer before which tokens went.

    `image` is the row in which heads are told of (`batching.image_row`).
    """
    common = {"task": task, "doc_id": doc_id, "method": pruner.name, "budget": pruner.budget}
    records = []
    for layer, kept in trace.kept.items():
        record: dict[str, Any] = common | {"layer": layer, "kept": kept[row].tolist(), "kept_tokens": len(kept[row])}
        if layer in trace.chosen_heads and image is not None:
            heads, scores = trace.chosen_heads[layer]
            record["heads"] = [head for head in heads[image].tolist() if head >= 0]
            record["head_scores"] = [round(score, 6) for score in scores[image].tolist()]
        if isinstance(found := trace.details.get(layer), Consensus):
            record |= monitor_record(found, row)
        records.append(record)
    return records
