"""The fenced blocks of a page, and how far a shell command can be checked without running it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- (not run|only parsed|prints)(?:: *(.+?))? *-->")
FENCE = re.compile(r"^( *)```+ *([\w-]*)")
SHELL = ("", "bash", "sh", "shell", "console")
# first words of commands that are not ours, and that are not run by a test
FOREIGN = {
    "pip",
    "git",
    "cd",
    "export",
    "source",
    "conda",
    "uv",
    "huggingface-cli",
    "hf",
    "vllm",
    "pre-commit",
    "sbatch",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, where it stands, and the mark in the line before it."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: Path) -> list[Block]:
    """The fenced blocks of a Markdown file. A mark is an HTML comment in the last non-empty line before it."""
    found, inside, before = [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is None:
            if fence := FENCE.match(line):
                mark = MARK.search(before)
                if re.match(r"\s*<!-- *(not|only|prints)", before) and not mark:
                    raise ValueError(f"{page.name}:{number}: unknown mark {before.strip()!r}")
                inside = (number, fence[1], fence[2], mark, [])
            elif line.strip():
                before = line
        elif line.strip() == "```":
            start, indent, language, mark, lines = inside
            text = "\n".join(x.removeprefix(indent) for x in lines) + "\n"
            name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
            found.append(Block(name, start, language, text, *(mark[1], mark[2] or "") if mark else ("", "")))
            inside, before = None, ""
        else:
            inside[4].append(line)
    if inside is not None:
        raise ValueError(f"{page.name}:{inside[0]}: the block does not end")
    return found


def pages() -> list[Path]:
    """Every page a reader is sent to."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    ]


def commands(text: str) -> list[list[str]]:
    """The simple commands of a shell block, as words: comments dropped, lines ended by a backslash joined."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [stripped for words in found if (stripped := _without_settings(words))]


def _without_settings(words: list[str]) -> list[str]:
    """A command without `NAME=value` before it and without what follows a redirection."""
    while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
        words = words[1:]
    for position, word in enumerate(words):
        if set(word) <= set("<>"):
            return words[:position]
    return words


def check(words: list[str]) -> None:
    """Raise `ValueError` if this command cannot be what a reader should type: an option or a file that is not there."""
    name, rest = words[0], words[1:]
    if name == "finepruner":
        _finepruner(rest)
    elif name == "accelerate" and "-m" in rest:
        _module(rest[rest.index("-m") + 1 :])
    elif name in ("python", "python3", ".venv/bin/python"):
        if rest[:1] == ["-m"]:
            _module(rest[1:])
        elif rest and rest[0] == "run_matrix.py":
            _finepruner(rest[1:])
        elif rest and rest[0] != "-c" and not (ROOT / rest[0]).exists():
            raise ValueError(f"{rest[0]}: there is no such file")
    elif name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        wrong = [word for word in rest if "=" not in word and not word.startswith("-") and word not in targets]
        if wrong:
            raise ValueError(f"make {wrong[0]}: there is no such target")
    elif name == "pytest":
        _files(rest)
    elif name not in FOREIGN and not (ROOT / name).is_file():
        raise ValueError(f"{name}: not a command that this test knows; mark the block `not run`, or add it to FOREIGN")


def _module(rest: list[str]) -> None:
    if rest[0] == "lmms_eval":
        _lmms_eval(rest[1:])
    elif rest[0] == "finepruner_lmms.cli":
        _finepruner(rest[1:])
    elif rest[0] == "pytest":
        _files(rest[1:])
    elif rest[0] not in ("pip", "venv"):
        places = [ROOT / rest[0].replace(".", "/"), ROOT / "scripts" / rest[0].replace(".", "/")]
        if not any(place.with_suffix(".py").exists() or place.is_dir() for place in places):
            raise ValueError(f"python -m {rest[0]}: there is no such module")


def _files(rest: list[str]) -> None:
    for word in rest:
        if word.endswith(".py") and not (ROOT / word).exists():
            raise ValueError(f"{word}: there is no such file")


def _finepruner(rest: list[str]) -> None:
    import typer
    from click import ClickException
    from click.exceptions import Exit

    from finepruner_lmms.cli import app

    group = typer.main.get_command(app)
    try:
        with group.make_context("finepruner", list(rest)) as context:
            name, command, arguments = group.resolve_command(context, rest)
            command.make_context(name, list(arguments), parent=context)
    except Exit:
        pass  # --help
    except Exception as error:  # noqa: BLE001  typer carries a click of its own in some versions, with its own classes
        said = error.format_message() if isinstance(error, ClickException) else getattr(error, "message", repr(error))
        raise ValueError(f"finepruner {shlex.join(rest)}: {said}") from None


def _lmms_eval(rest: list[str]) -> None:
    """The options are lmms-eval's, the model arguments are ours and make a pruner, the `fp_` tasks exist."""
    from lmms_eval.utils import simple_parse_args_string

    from finepruner_lmms.benchmarks import BENCHMARKS
    from finepruner_lmms.lmms.model_args import ModelArguments

    given = dict(zip(rest, [*rest[1:], ""], strict=True))
    source = Path(__import__("lmms_eval.__main__", fromlist=["_"]).__file__).read_text(encoding="utf-8")
    unknown = [word for word in rest if word.startswith("--") and f'"{word}"' not in source]
    if unknown:
        raise ValueError(f"lmms_eval: it has no option {unknown[0]}")
    if given.get("--model") == "llava_finepruner":
        ModelArguments.parse(simple_parse_args_string(given.get("--model_args", ""))).build_pruner()
    for task in given.get("--tasks", "").split(","):
        if task.startswith("fp_") and task.removeprefix("fp_") not in BENCHMARKS:
            raise ValueError(f"lmms_eval: there is no task {task}")
