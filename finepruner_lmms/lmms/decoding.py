"""How an answer is to be generated, read from a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loguru import logger

_DECODING = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams")
_IGNORED = {"until"}  # lmms-eval adds "\n\n" where a task names none, which would cut answers short
_LENGTH = 128


class Decoding:
    """The arguments of `generate` for tasks; `most` new tokens where it is given, whatever a task says."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._warned: set[str] = set()

    def of(self, gen_kwargs: Mapping[str, Any], task: str) -> dict[str, Any]:
        """Read from the task's `generation_kwargs`, which are shared and stay as they are."""
        for key in set(gen_kwargs) - set(_DECODING) - _IGNORED - self._warned:
            logger.warning(f"task {task!r}: generation_kwargs {key!r} is not used by finepruner")
            self._warned.add(key)
        given = {key: gen_kwargs[key] for key in _DECODING if gen_kwargs.get(key) is not None}
        sample = bool(given.pop("do_sample", False)) and given.get("temperature", 1) > 0
        if not sample:
            given = {key: value for key, value in given.items() if key in ("max_new_tokens", "num_beams")}
        limit = self._most or given.get("max_new_tokens", _LENGTH)
        return given | {"do_sample": sample, "max_new_tokens": int(limit)}
