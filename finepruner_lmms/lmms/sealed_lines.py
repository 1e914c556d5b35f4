"""JSON lines that each carry a check of their own: one that was cut off, changed, or is another's, is not read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_CHECK = 16  # hexadecimal digits
_BEFORE = ', "check": "'
_TAIL = len(_BEFORE) + _CHECK + len('"}')


class Seal:
    """Seals lines of one owner, named by a text: those of another do not open."""

    def __init__(self, owner: str) -> None:
        self._key = hashlib.sha256(owner.encode()).digest()

    def close(self, record: dict[str, Any]) -> str:
        """A line without its end. In ASCII, so that nothing in a record ends a line."""
        body = json.dumps(record)[:-1]
        return f'{body}{_BEFORE}{self._check(body.encode())}"}}'

    def open(self, line: bytes) -> dict[str, Any] | None:
        """The record in a line; None where it is not as it was written, or was sealed for another owner."""
        body, tail = line[:-_TAIL], line[-_TAIL:]
        if tail != f'{_BEFORE}{self._check(body)}"}}'.encode():
            return None
        value = json.loads(body + b"}")
        return value if isinstance(value, dict) else None

    def _check(self, body: bytes) -> str:
        return hashlib.blake2b(body, digest_size=_CHECK // 2, key=self._key).hexdigest()
