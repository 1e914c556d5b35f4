"""Seeing what methods keep of one picture: the user's own, or a scene of the demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepruner_lmms.errors import FieldError

if TYPE_CHECKING:
    from finepruner_lmms.asking.compared import Comparison

_KINDS = (".png", ".html", ".pdf", ".svg")
_METHODS = "random,vispruner,fastv,finepruner:head_strategy=recommended"


def show(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE QUESTION",
            help="A picture and a question about it; `demo` or `demo:7` is a scene of the demo, which brings its own "
            "question. Or OUTPUT TASK QUESTION: a question of a study by its number, as it was recorded.",
            show_default=False,
        ),
    ],
    pretrained: Annotated[str, typer.Option(help="A checkpoint: hub id, folder, or demo.")] = "demo",
    methods: Annotated[
        str, typer.Option(help="Such as fastv:64,finepruner:heads=4; vanilla always.", show_default="a few")
    ] = "",
    budget: Annotated[str, typer.Option(help="Of methods that are written without one: 64, or 11%.")] = "64",
    out: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A .html, .png, .pdf or .svg file; may be repeated.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="New tokens of an answer, at most.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16")] = "auto",
) -> None:
    """Show what each method keeps of one picture, stage by stage: answers and times here, pictures in a file."""
    from finepruner_lmms.commands.preflight import check_file

    usual = {"pretrained": "demo", "methods": "", "budget": "64", "tokens": 64, "device": "auto", "dtype": "auto"}
    asked = {"pretrained": pretrained, "methods": methods, "budget": budget, "tokens": tokens, "device": device}
    given = {name: str(value) for name, value in (asked | {"dtype": dtype}).items() if value != usual[name]}
    for file in out or []:
        if file.suffix.lower() not in _KINDS:
            problem = f"got {str(file)!r}; the name ends in none of {', '.join(_KINDS)}"
            raise FieldError("--out", problem, value=file)
        check_file("--out", file)
    if len(what) == 3:
        found = _of_study(what, given)
    else:
        found = _asked(what, pretrained, methods, budget, tokens, device, dtype)
    _write(found, out or [])


def _of_study(what: list[str], given: dict[str, str]) -> Comparison:
    """OUTPUT TASK QUESTION; options that ask a model anew say nothing here."""
    from finepruner_lmms.matrix.report.one_question import comparison_of
    from finepruner_lmms.matrix.store import Store

    output, task, number = what
    for option, value in given.items():
        raise FieldError(
            f"--{option}", "a question of a study is shown as it was answered", value=value, fix="leave it out"
        )
    return comparison_of(Store(Path(output)), task, number)


def _asked(
    what: list[str], pretrained: str, methods: str, budget: str, tokens: int, device: str, dtype: str
) -> Comparison:
    from finepruner_lmms.checkpoints.images import read_rgb
    from finepruner_lmms.demo.shown import Example, example, is_scene
    from finepruner_lmms.pruners.budget import parse_budget
    from finepruner_lmms.pruners.written import read_methods, split_methods

    image, *rest = what
    if len(rest) > 1 or (not rest and not is_scene(image)):
        problem = f"got {len(what)} argument{'s' * (len(what) != 1)}"
        raise FieldError("show", problem, fix="give IMAGE QUESTION, or the word demo")
    parse_budget(budget, "--budget")
    chosen = read_methods(split_methods(methods or _METHODS), budget)
    if is_scene(image):
        given = example(image, *rest)
    else:
        given = Example(read_rgb(image, "IMAGE"), rest[0], None)
    import finepruner_lmms as fp
    from finepruner_lmms.asking.compared import compare_methods

    model, processor = fp.load_model(pretrained, dtype=dtype, device=device)
    about = f"{pretrained}, {str(model.dtype).removeprefix('torch.')}, on {model.device}"
    return compare_methods(
        model, processor, given.image, given.question, chosen,
        about=about, expected=given.expected, evidence=given.evidence, max_new_tokens=tokens,
    )  # fmt: skip


def _write(found: Comparison, files: list[Path]) -> None:
    from finepruner_lmms.asking.show import save_figure
    from finepruner_lmms.asking.show_page import page
    from finepruner_lmms.asking.show_text import print_pictures, table
    from finepruner_lmms.files import write_text
    from finepruner_lmms.output import console, plain

    sys.stdout.write(table(found))
    drawable = all(picture.views for picture in found.pictures)
    if drawable and sys.stdout.isatty():
        sys.stdout.flush()
        print_pictures(found, console())
    for file in files:
        if file.suffix.lower() == ".html":
            write_text(file, page(found))
        else:
            save_figure(found, file)
        sys.stdout.write(f"{plain(file)}\n")
    if not files:
        sys.stdout.write("with --out kept.html, or .png, each method's picture\n")
