r"""LaTeX of tables: `\input` it in a document that loads booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.output import latex

_HEAD = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"


def floating(frame: Frame, notes: Sequence[str], label: str = "") -> str:
    """A frame as a float across the page, no wider than it, with its notes as the caption."""
    caption = " ".join(map(latex, notes))
    named = rf"\label{{tab:{label}}}" if label else ""
    return (
        f"{_HEAD}\\begin{{table*}}[t]\n\\centering\n\\caption{{{caption}}}{named}\n"
        "\\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%\n"
        f"{frame.latex().rstrip()}%\n}}\n\\end{{table*}}\n"
    )
