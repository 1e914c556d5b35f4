r"""Text that others wrote, made harmless for where it is shown: labels, names, answers and errors are data.

A label of a plug-in, an answer of a model, the message of an exception may hold anything: escape sequences that move a
terminal's cursor, marks that turn the direction of writing, markup of Markdown, LaTeX, HTML, spreadsheets or
matplotlib. There is one function per kind of output, and whoever writes there uses it:

| written to | function |
|---|---|
| a terminal, a log, one line of anything | `plain`; `one_line`, `several_lines` where the text may have several |
| a Markdown document | `markdown` |
| a LaTeX document | `latex` |
| a CSV file or a cell of a spreadsheet | `csv_cell` |
| an HTML page | `html` |
| a picture of matplotlib | `mathtext` |
| loguru's log | `log_plainly`, once |
| rich, where it draws (progress, tables) | `rich_text`, `console` |

What cannot be shown is written as Python writes it in a string (`\x1b`, `\u202e`, `\n`): visible, and never lost.
"""

from __future__ import annotations

import codecs
import html as _html
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from loguru import Record
    from rich.console import Console
    from rich.text import Text

_MOST = 2000  # characters of one line; an answer or a message may be a megabyte
_FORMULA = tuple("=+-@＝＋－＠")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$]|&(?=#?\w+;)|(?<=:)//|(?<![^\W_])_|_(?![^\W_])")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$", "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "Δ": r"$\Delta$",
}  # fmt: skip
_ASCII = str.maketrans({
    "±": "+-", "–": "-", "—": "-", "÷": "/", "×": "x", "→": "->", "…": "...", "·": ".", "’": "'", "“": '"', "”": '"',
    "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "┃": "|", "┼": "+", "\xa0": " ",
    "↑": "^", "↓": "v", "Δ": "delta",
})  # fmt: skip


def plain(text: object) -> str:
    r"""One line: what cannot be printed (control characters, escape sequences, marks of direction, ends of lines,
    halves of surrogate pairs) as `\x1b`, `\u202e`, `\n`; what is longer than 2000 characters is cut.
    """
    line = str(text)
    return _visible(line if len(line) <= _MOST else f"{line[:_MOST]}… ({len(line)} characters)")


def markdown(text: object) -> str:
    """As it stands, in a paragraph or in a cell of a table: no emphasis, code, link, picture, HTML, formula, column."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", _visible(text))


def latex(text: object) -> str:
    """As it stands: no macro, group, comment, formula or column."""
    return "".join(_LATEX.get(character, character) for character in _visible(text))


def csv_cell(value: Any) -> Any:
    """A value for a CSV writer: a number stays one, also as text; a text that a spreadsheet would run gets a `'`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = _visible(value)
    if not text.lstrip().startswith(_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def html(text: object) -> str:
    """As it stands, between tags and inside a quoted attribute."""
    return _html.escape(_visible(text))


def mathtext(text: object) -> str:
    """As it stands in a label, a title or a legend of matplotlib, which leaves out of a legend what starts with `_`."""
    line = _visible(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def one_line(text: object) -> str:
    """`plain` of a text that may stand in several lines, such as the message of an error: the lines are joined."""
    return plain("; ".join(filter(None, map(str.strip, str(text).splitlines()))))


def several_lines(text: object) -> str:
    """`plain` of each line, for a log."""
    return "\n".join(map(plain, str(text).split("\n")))


def log_plainly() -> None:
    """Have loguru write `several_lines` of every message, also of those that lmms-eval logs."""
    from loguru import logger

    def patch(record: Record) -> None:
        record["message"] = several_lines(record["message"])

    logger.configure(patcher=patch)


def rich_text(text: object) -> Text:
    """For rich, which would read `[bold]` and `:smile:` in a string."""
    from rich.text import Text

    return Text(plain(text))


def say(console: Console, text: object) -> None:
    """One line on a console, at once, unbroken however long it is."""
    console.print(rich_text(one_line(text)), soft_wrap=True)
    console.file.flush()


def console(file: TextIO | None = None, **more: Any) -> Console:
    """A console that reads no markup in what it is given, and whose reader may go away (`BrokenPipeError`)."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:  # rich's own ends the process
            raise BrokenPipeError

    return _Console(file=file, markup=False, emoji=False, highlight=False, **more)


# -- terminals that cannot show everything ----------------------------------------------------------------------------


def make_streams_robust() -> None:
    """Let standard output and error take any text, whatever their encoding; where they are closed, let them take it."""
    codecs.register_error(_ERRORS, _replace)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            setattr(sys, name, open("/dev/null", "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - as long as we live
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)


_ERRORS = "finepruner_visible"


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """What an encoding lacks: something like it, or its code."""
    lacking = cast(UnicodeEncodeError, error)
    text = lacking.object[lacking.start : lacking.end]
    found = (character.translate(_ASCII) for character in text)
    return "".join(c if c.isascii() else _code(c) for c in found), lacking.end


def _visible(text: object) -> str:
    line = str(text)
    if line.isprintable():
        return line
    return "".join(character if character.isprintable() else _code(character) for character in line)


def _code(character: str) -> str:
    return " " if character == "\xa0" else character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
