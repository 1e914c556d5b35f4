"""Every fenced block of the README and the docs works as it stands there.

How to write a page (README.md, CONTRIBUTING.md, docs/, examples/):

- ```` ```python ````: the blocks of a page are executed in order, in one namespace, in an empty folder per page that
  holds links to the repository's files.
- ```` ```bash ```` (or no language): the commands are executed after the Python blocks, in order, in the same
  folder, with `finepruner` and `python` on the path and without network. A failing command fails the test.
  Only blocks of a few seconds should be left to run.
- ```` ```yaml ````: a matrix file, or a part of one (`judge:`, `launch:`, `methods:`), put into a small one: it is
  validated and each of its pruners is built. ```` ```toml ```` and ```` ```json ```` must parse.
- ```` ```text ````, ```` ```diff ```` and ```` ```bibtex ```` are not read, unless marked as below.

A mark stands in a line of its own before the fence; the reason is required where one is shown:

- `<!-- only parsed: needs a GPU -->`: not run. Of Python the imports and the names taken from `finepruner_lmms` are
  checked; of a shell block that options, targets, files, `--model_args` and tasks exist.
- `<!-- not run: output of another program -->`: not looked at.
- `<!-- prints -->` before a ```` ```text ```` block: the Python or shell block before it must print exactly this. A
  line `…` (or `...`) in it stands for any number of lines.

Notebooks: see `test_notebook.py`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import doc_blocks
import pytest
import yaml
from doc_blocks import ROOT, SHELL, Block

import finepruner_lmms as fp
from finepruner_lmms.matrix.config import MatrixFile
from finepruner_lmms.pruners import registry

PAGES = {page.relative_to(ROOT).as_posix(): doc_blocks.read(page) for page in doc_blocks.pages()}
CLOSED = ("text", "diff", "bibtex")
MATRIX = {"name": "doc", "model": {"pretrained": "demo"}, "data": "demo", "tasks": ["gqa"], "methods": ["vanilla"]}


def to_run(page: str, *languages: str) -> list[Block]:
    return [block for block in PAGES[page] if block.language in languages and not block.mark]


RUNNABLE = [page for page in PAGES if to_run(page, "python", *SHELL)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a page's blocks run: what they write stays out of the repository, what they read is linked."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("runs", "build", "dist"):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # what a page registers ends with the page
    monkeypatch.setitem(sys.modules, "__page__", type(sys)("__page__"))
    return tmp_path


def execute(code: str, where: str, namespace: dict) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, where, "exec"), namespace)
    return said.getvalue()


def shell(block: Block, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    env = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def same(printed: str, shown: str) -> bool:
    """Whether `printed` is what a page shows, where a line of dots stands for any lines."""
    lines = [line.rstrip() for line in shown.strip().splitlines()]
    pattern = "\n".join(r"(?:.*\n)*?.*" if line.strip() in ("…", "...") else re.escape(line) for line in lines)
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.strip().splitlines())) is not None


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE)
def test_a_page_does_what_it_says(page, folder):
    printed: dict[int, str] = {}
    namespace: dict = {"__name__": "__page__"}
    for block in to_run(page, "python"):
        printed[block.line] = execute(block.text, str(block), namespace)
    for block in to_run(page, *SHELL):
        printed[block.line] = shell(block, folder)
    for block in PAGES[page]:
        if block.mark == "prints":
            before = max((line for line in printed if line < block.line), default=None)
            assert before is not None, f"{block}: no block before it was run"
            assert same(printed[before], block.text), f"{block}: printed\n{printed[before]}\nshown\n{block.text}"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_is_at_least_well_formed(page):
    for block in PAGES[page]:
        if block.mark in ("not run", "only parsed"):
            assert block.why, f"{block}: say why it is {block.mark}"
        if block.mark == "not run" or block.mark == "prints":
            continue
        try:
            well_formed(block)
        except (ValueError, SyntaxError) as error:
            raise AssertionError(f"{block}: {error}") from error


def well_formed(block: Block) -> None:
    if block.language in SHELL:
        for words in doc_blocks.commands(block.text):
            doc_blocks.check(words)
    elif block.language == "python":
        for node in ast.walk(ast.parse(block.text)):
            check_names(node)
    elif block.language in ("yaml", "yml"):
        check_matrix(yaml.safe_load(block.text))
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language not in CLOSED:
        raise ValueError(
            f"nothing checks the language {block.language!r}; known: python, bash, yaml, toml, json, {CLOSED}"
        )


def check_names(node: ast.AST) -> None:
    """What is imported from the package, or taken from `fp`, is there."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finepruner_lmms"):
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fp" and not hasattr(fp, node.attr):
        raise ValueError(f"finepruner_lmms has no {node.attr!r}")


def check_matrix(content: dict) -> None:
    file = MatrixFile.model_validate(MATRIX | content)
    for entry in file.methods:
        if isinstance(entry, dict):
            lists = {key: value if isinstance(value, list) else [value] for key, value in entry.items()}
            for position in range(max(map(len, lists.values()))):
                row = {key: values[min(position, len(values) - 1)] for key, values in lists.items()}
                assert len(fp.build_pruner(row.pop("method"), **row).schedule(32, 576)) == 32


# -- the checks themselves can fail -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "finepruner no-such-command",
        "finepruner table runs/x --no-such-option",
        "finepruner table",
        "HF_HUB_OFFLINE=1 python run_matrix.py tasks --data demo --nonsense > file",
        "make no-such-target",
        "python scripts/no_such_script.py",
        "python -m no_such_module",
        "pytest tests/no_such_test.py",
        "no-such-program --help",
        "python -m lmms_eval --no_such_option 1",
        "python -m lmms_eval --model llava_finepruner --model_args pretrained=demo,method=fastv,budget=128,no_such=1",
        "accelerate launch -m lmms_eval --model llava_finepruner --model_args method=no_such,budget=128",
        "python -m lmms_eval --model llava_finepruner \\\n  --tasks fp_nothing",
    ],
)
def test_a_wrong_command_is_noticed(command):
    with pytest.raises(ValueError):
        for words in doc_blocks.commands(command):
            doc_blocks.check(words)


@pytest.mark.parametrize(
    "language, text",
    [
        ("python", "from finepruner_lmms.pruners import NoSuchName\n"),
        ("python", "import finepruner_lmms as fp\nfp.no_such_name\n"),
        ("python", "print(\n"),
        ("yaml", "methods: [{method: fastv, budget: 128, no_such: 1}]\n"),
        ("yaml", "methods: [{method: fastv, budget: [128, 1]}]\n"),
        ("json", "{\n"),
        ("nonsense", "x\n"),
    ],
)
def test_a_wrong_block_is_noticed(language, text):
    with pytest.raises((ValueError, SyntaxError, ImportError)):
        well_formed(Block("page", 1, language, text))


def test_marks_and_dots(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- only parsed: needs a GPU -->\n\n```bash\nls\n```\n- text\n\n  ```python\n  x = 1\n  ```\n")
    parsed, plain = doc_blocks.read(page)
    assert (parsed.mark, parsed.why, parsed.text) == ("only parsed", "needs a GPU", "ls\n")
    assert (plain.mark, plain.language, plain.text) == ("", "python", "x = 1\n")
    assert same("a\nb\nc\n", "a\n…\n") and same("a \n", "a") and not same("a\nb\n", "a\n") and not same("ab", "a.")
    page.write_text("<!-- not  run -->\n```bash\nls\n```\n")
    with pytest.raises(ValueError, match="unknown mark"):
        doc_blocks.read(page)
