"""What a word of a matrix file is: text, a number, true, false or nothing, and never a guess.

YAML 1.1, as PyYAML reads it, takes `010` for 8, `1:30` for 90 and `2024-11-26` for a date, and YAML 1.2 does not. Here
a number is one that both read alike (and `1e3`, which is a number everywhere else); a number in another notation is a
mistake, and a date is text.
"""

from __future__ import annotations

import math
import re

from finepruner_lmms.errors import show

Value = str | int | float | bool | None

_WORDS: dict[str, bool | None] = {"": None, "~": None}
for _names, _value in (("null", None), ("true yes on", True), ("false no off", False)):
    for _name in _names.split():
        _WORDS |= dict.fromkeys((_name, _name.capitalize(), _name.upper()), _value)

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?")
_ODD = {
    re.compile(r"[-+]?0o?[0-9_]+"): "octal",
    re.compile(r"[-+]?0x[0-9a-fA-F_]*"): "hexadecimal",
    re.compile(r"[-+]?0b[01_]*"): "binary",
    re.compile(r"[-+]?([1-9][0-9_]*(:[0-5]?[0-9])+|[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*)"): "base 60",
}
_ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DIGITS = 18
"""More are taken for a mistake, and would not fit where numbers have 64 bits."""
_PREFIX = "tag:yaml.org,2002:"
_TAGS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),),
}  # fmt: skip


def read_scalar(text: str, plain: bool, tag: str | None) -> Value:
    """The value of a scalar, `plain` if it stands without quotes; `ValueError` saying why it has none."""
    if odd := next((character for character in text if _is_control(character)), None):
        raise ValueError(f"got {show(text)}; a setting holds no {odd!r}")
    if tag in (None, "!"):
        return _resolve(text) if plain and tag is None else text
    kind = str(tag).removeprefix(_PREFIX)
    if kind not in _TAGS:
        shown = f"!!{kind}" if str(tag).startswith(_PREFIX) else str(tag)
        raise ValueError(f"the tag {show(shown)} is not read; leave it out (known: !!{', !!'.join(_TAGS)})")
    if kind == "str":
        return text
    found = _resolve(text)
    if type(found) not in _TAGS[kind]:
        raise ValueError(f"got {show(text)}, which cannot be read as YAML's {kind!r}; leave the tag out")
    return found


def _is_control(character: str) -> bool:
    """Whether a character belongs in no setting: a path may hold a line's end, and no NUL or half of a pair."""
    code = ord(character)
    return (code < 32 and character not in "\t\n\r") or 127 <= code < 160 or 0xD800 <= code < 0xE000


def _resolve(text: str) -> Value:
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 400:  # no number
        if text.strip("0123456789_+-."):
            return text
        raise ValueError(f"got {show(text)}; a number has at most {_DIGITS} digits")
    if _INTEGER.fullmatch(text):
        if len(text.strip("+-").replace("_", "")) > _DIGITS:
            raise ValueError(f"got {show(text)}; a number has at most {_DIGITS} digits")
        return int(text)
    for pattern, notation in _ODD.items():
        if pattern.fullmatch(text):
            raise ValueError(
                f"got {show(text)}, which may be read as a number in {notation} notation; "
                "write it as a decimal number, or in quotes if it is a text"
            )
    number = float(text.replace("_", "")) if _FLOAT.fullmatch(text) else None
    if _ENDLESS.fullmatch(text) or (number is not None and not math.isfinite(number)):
        raise ValueError(f"got {show(text)}; expected a finite number, or quotes around it if it is a text")
    return text if number is None else number
