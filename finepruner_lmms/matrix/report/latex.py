r"""LaTeX of tables: `\input` it in a document that loads booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.output import latex

_MOST = 30
"""Rows on a page."""
HEAD = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"


def floats(frame: Frame, notes: Sequence[str]) -> list[str]:
    """A frame as floats across the page, as many as its length needs, with its notes as the caption of the first."""
    parts = frame.split(_MOST)
    captions = [notes, *([f"{notes[0]} Continued."] for _ in parts[1:])]
    return [_float(part, caption) for part, caption in zip(parts, captions, strict=True)]


def _float(frame: Frame, notes: Sequence[str]) -> str:
    first, *others = map(latex, notes)
    caption = f"{first} {{\\footnotesize {' '.join(others)}}}" if others else first
    return (
        "\\begin{table*}[p]\n\\centering\n"
        f"\\caption{{{caption}}}\n\\smallskip\n"
        "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%\n"
        f"{frame.latex().rstrip()}%\n}}\n\\end{{table*}}\n"
    )
