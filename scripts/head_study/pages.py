"""Markdown tables, and their places in a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Lines = Iterator[str]


def header(*cells: object) -> Lines:
    """The first two lines of a table."""
    yield "| " + " | ".join(map(str, cells)) + " |"
    yield "|" + "---|" * len(cells)


def row(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def signed(value: float) -> str:
    """A difference with one digit; what is rounded to 0 is +0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"


def fill(texts: Sequence[str], tables: dict[str, list[str]]) -> list[str]:
    """`texts` with each marked table replaced. `ValueError` where a table has not one mark, or a mark no table."""
    marked = sorted(name for text in texts for name in re.findall(r"<!-- table (\S+) -->", text))
    if marked != sorted(tables):
        raise ValueError(f"doc: marks {marked}, tables {sorted(tables)}; each table needs its mark, once")
    pattern = r"(<!-- table (\S+) -->\n).*?(<!-- end -->)"
    return [
        re.sub(pattern, lambda m: m[1] + "\n".join(tables[m[2]]) + "\n" + m[3], text, flags=re.DOTALL) for text in texts
    ]
