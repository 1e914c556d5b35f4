"""Which option a free answer to a multiple-choice question of MMBench names, without a judge.

The rule is that of MMBench's evaluation (`matching_util.py` of VLMEvalKit) as far as it goes without a model: one
letter that stands alone, else the text of just one option. What it leaves open goes to a model there; here it is
unreadable until a judge reads it, and is never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

LETTERS = "ABCDE"
"""E is no option of MMBench; an answer that is nothing but it names none, which is not the same as saying nothing."""
_ALONE = re.compile(r"(?<![\w'’&/+-])[A-E](?![\w'’&/+-])")
_ARTICLE = re.compile(r"A[ \t]+[A-Za-z]")
"""An A and a word after it: "A cat sits", but also "A is right"; a letter only where something says so."""
_NAMED = re.compile(r"(?:option|choice|letter|answer|choose|pick|select)\s*(?:is)?[\s:\"'“(]*$", re.IGNORECASE)
_CHINESE = (
    re.compile(r"(?:答案|选项|选择|选)(?:应该|应当|应|就)?(?:是|为|选)?[\s:\"'“‘「(]*[A-E](?![A-Za-z0-9'])"),
    re.compile(r"(?<![A-Za-z0-9'])[A-E][\s\"'”’」)]*(?:选项|项)"),
    re.compile(r"^\W*[A-E](?=[\u3000-\u303f])"),
)
_AMONG_CHINESE = re.compile(r"(?<![A-Za-z0-9'])[A-E](?![A-Za-z0-9'])")
_NEAR = 24  # characters before a letter in which something may say that it is one
_LONG = 2
"""An answer longer than so many times all options together may mention one without meaning it."""


def letter_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that `answer` names among `options` (letter → text), or one that is no option; None if unreadable.

    Full-width letters and brackets are read as plain ones, and letters by what Chinese puts before or after them.
    """
    text = unicodedata.normalize("NFKC", answer).strip()
    named = _named(text)
    if len(among := named & options.keys()) == 1:
        return among.pop()
    if (found := _by_text(text, options)) is not None:
        return found
    return named.pop() if len(named) == 1 and not among else None


def _named(text: str) -> set[str]:
    """The letters that stand alone; an A before a word counts only beside others, where it makes the answer unclear."""
    found: set[str] = set()
    articles: set[str] = set()
    for match in _ALONE.finditer(text):
        before = text[max(0, match.start() - _NEAR) : match.start()]
        article = _ARTICLE.match(text, match.start()) and not _NAMED.search(before)
        (articles if article else found).add(match[0])
    if any(pattern.search(text) for pattern in _CHINESE):
        found |= set(_AMONG_CHINESE.findall(text))  # all of them, so that "选A还是B" names none
    return found | articles if found else found


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    said = text.lower()
    plain = {letter: unicodedata.normalize("NFKC", option).strip().lower() for letter, option in options.items()}
    if len(said) > _LONG * sum(map(len, plain.values())):
        return None
    found = [letter for letter, option in plain.items() if option and option in said]
    return found[0] if len(found) == 1 else None
