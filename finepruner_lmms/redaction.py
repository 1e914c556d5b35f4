"""Keeping a secret out of what others say: a server may repeat the key it was sent, in any spelling."""

from __future__ import annotations

import base64
import html
import logging
import re
import string
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import unquote

from finepruner_lmms.errors import show

KEY = "[key]"
WITHHELD = "[withheld: the key stands in it, encoded]"

_LEAST = 4  # characters: what is shorter, such as the "x" that a local server wants, is no secret
_FRAGMENT = 8  # characters of a key that are not shown either
_ROUNDS = 4  # encodings inside encodings
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)  # keeps every position
_ESCAPE = re.compile(r"\\(?:u\{?([0-9a-fA-F]{4,6})\}?|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2}))")
_LOGGERS = ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))
_SHAPE = re.compile(
    r"(?<![\w-])(?:[Bb]earer\s+|sk-|hf_|gsk_|xai-|ghp_|AIza|AKIA|glpat-|nvapi-|pplx-|r8_)[\w-]{8,}", re.ASCII
)
_RANDOM = re.compile(r"(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{16,}", re.ASCII)


class Secret:
    """A key, or none, and how to take it out of texts.

    Where it stands as it is, whole or in a part of eight characters or more, `[key]` takes its place. Where it stands
    escaped (JSON, URLs, HTML, Python), spaced out, in base64, base32 or hexadecimal, the whole text is withheld.
    """

    def __init__(self, value: str | None) -> None:
        value = value or ""
        secret = len(value) >= _LEAST
        self._plain = _pieces(value.translate(_LOWER), _FRAGMENT) if secret else frozenset()
        self._encoded = frozenset().union(*map(_coded_pieces, _codes(value))) if secret else frozenset()

    def hide(self, text: str) -> str:
        """The text without the key."""
        if not self._plain:
            return text
        covered = self._cover(text)
        return WITHHELD if self._stands_encoded_in(covered) else covered

    def hide_all(self, value: Any) -> Any:
        """JSON without the key in any text or name."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_all(one) for one in value]
        if isinstance(value, dict):
            return {self.hide(name): self.hide_all(one) for name, one in value.items()}
        return value

    @contextmanager
    def hidden_in_logs(self) -> Iterator[None]:
        """While the block runs, what the HTTP libraries log of requests and replies is without the key."""

        def clean(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.hide(record.getMessage()), ()
            return True

        with ExitStack() as added:
            for name in _LOGGERS if self._plain else ():
                logger = logging.getLogger(name)
                logger.addFilter(clean)
                added.callback(logger.removeFilter, clean)
            yield

    def _cover(self, text: str) -> str:
        lower = text.translate(_LOWER)
        spans = sorted(span for piece in self._plain for span in _places(lower, piece))
        parts: list[str] = []
        at = 0
        for start, end in spans:
            if start > at or not parts:
                parts += [text[at:start], KEY]
            at = max(at, end)
        return "".join([*parts, text[at:]])

    def _stands_encoded_in(self, text: str) -> bool:
        for _ in range(_ROUNDS):
            dense = "".join(c for c in text if "!" <= c <= "~").translate(_LOWER)
            for piece in self._plain | self._encoded:
                if piece in dense:
                    return True
            before, text = text, _decoded(text)
            if text == before:
                return False
        return True  # nobody nests so deeply without a purpose


def may_be_key(value: Any) -> bool:
    """Whether a value given where something else belongs may be a key: by its shape, or as it looks random."""
    shown = show(value)
    return bool(_SHAPE.search(shown) or _RANDOM.search(shown))


def has_shape_of_key(value: Any) -> bool:
    """Whether a value is written as keys of well-known services are (`sk-…`, `hf_…`)."""
    return bool(_SHAPE.search(show(value)))


def show_unless_key(value: Any) -> str:
    """A value for a message, unless it may be a key."""
    return "a value that is not shown, since it may be a key" if may_be_key(value) else show(value)


def _pieces(value: str, length: int) -> frozenset[str]:
    """All parts of a length: of a long value longer ones, so that a common beginning such as `sk-` is none."""
    length = min(len(value), max(length, len(value) // 3))
    return frozenset(value[start : start + length] for start in range(len(value) - length + 1))


def _coded_pieces(code: str) -> frozenset[str]:
    return _pieces(code.translate(_LOWER), 2 * _FRAGMENT)


def _codes(value: str) -> Iterator[str]:
    """What any text that holds the value holds in base64, base32 or hexadecimal, wherever in it the value begins."""
    data = value.encode()
    yield data.hex()
    for encode, bits, group in ((base64.b64encode, 6, 3), (base64.urlsafe_b64encode, 6, 3), (base64.b32encode, 5, 5)):
        for before in range(group):
            code = encode(bytes(before) + data).decode()
            yield code[-(-before * 8 // bits) : (before + len(data)) * 8 // bits]  # the rest depends on neighbours


def _places(text: str, piece: str) -> Iterator[tuple[int, int]]:
    start = text.find(piece)
    while start >= 0:
        yield start, start + len(piece)
        start = text.find(piece, start + 1)


def _decoded(text: str) -> str:
    """One layer of escapes less, of every kind."""
    text = html.unescape(unquote(_ESCAPE.sub(_character, unicodedata.normalize("NFKC", text)), errors="replace"))
    return re.sub(r"\\(.)", r"\1", text)


def _character(match: re.Match[str]) -> str:
    code = int(next(group for group in match.groups() if group), 16)
    return chr(code) if code <= 0x10FFFF else ""
