"""Telling lmms-eval's response cache what our answers depend on.

The cache keys an answer by the model's name and its `model_args` as typed. After an upgrade of this package, or when
a checkpoint folder is written anew, the same words would fetch the old answers. `identify` adds what is missing to
the model's side of the key, for our model only.
"""

from __future__ import annotations

import functools
import json
import weakref
from pathlib import Path
from typing import Any, Protocol

from lmms_eval import evaluator

from finepruner_lmms.files import split_lines

_NAMES = ("llava_finepruner", "finepruner")


def share_answers(cache: Path, run_id: str, rank: int) -> None:
    """Let process `rank` find what all processes of earlier attempts have answered, however many these were.

    lmms-eval gives each process a cache of its own, and the questions to others when their number changes. It takes
    in what the log beside that cache holds, so the lines of the other logs are added to it, before it is opened.
    """
    folder = cache / "runs" / run_id
    own = folder / f"rank_{rank}.audit.jsonl"
    known = _logged(own)
    missing = {key: line for file in sorted(folder.glob("rank_*.audit.jsonl")) for key, line in _logged(file).items()}
    lines = [line for key, line in missing.items() if key not in known]
    if lines:
        with own.open("a", encoding="utf-8") as log:
            log.write("\n" + "\n".join(lines) + "\n")  # after a line that may have been cut off


def _logged(file: Path) -> dict[str, str]:
    """The whole lines of a log by the key of their answer."""
    found = {}
    for line in split_lines(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("cache_key"):
            found[str(entry["cache_key"])] = line
    return found


class Identified(Protocol):
    """A model that can say what its answers depend on."""

    @property
    def identity(self) -> str:
        """One line, the same for the same answers."""


_current: weakref.ref[Any] | None = None


def identify(model: Identified) -> None:
    """Make the cache of the coming evaluations by model name depend on `model.identity`."""
    global _current
    _current = weakref.ref(model)
    if getattr(evaluator.ResponseCache.create, "identifies_finepruner", False):
        return
    create = evaluator.ResponseCache.create

    @functools.wraps(create)
    def create_identified(cache_root: str, *, model: Any = "", **arguments: Any) -> Any:
        known = _current() if _current is not None else None
        if isinstance(model, str) and model in _NAMES and known is not None:
            model = f"{model}|{known.identity}"
        return create(cache_root, model=model, **arguments)

    create_identified.identifies_finepruner = True  # type: ignore[attr-defined]
    evaluator.ResponseCache.create = create_identified
