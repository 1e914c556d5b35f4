"""How fast methods are on this device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finepruner_lmms.errors import FieldError


def bench(
    pretrained: Annotated[str | None, typer.Option(help="A checkpoint: hub id, folder, or demo.")] = None,
    like: Annotated[
        str | None, typer.Option(help="Random weights of this shape, without a download: llava-1.5-7b, ..., tiny.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Such as fastv:64,finepruner:25%:heads=4; vanilla always.", show_default="a few")
    ] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8,32",
    execution: Annotated[str, typer.Option(help="auto, eager, graphs, or both of these.")] = "auto",
    tokens: Annotated[int, typer.Option(help="New tokens of an answer of fixed length.")] = 16,
    text: Annotated[int, typer.Option(help="Text tokens of a prompt, with --like.")] = 60,
    rounds: Annotated[int, typer.Option(help="How often each method is asked.")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; auto: bfloat16 on a GPU, else float32.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="A folder for the files.", show_default="runs/bench-<model>")] = None,
    redraw: Annotated[
        Path | None, typer.Option("--redraw", help="A bench.json measured before: only write its table and picture.")
    ] = None,
) -> None:
    """Measure methods on this device, side by side, next to what their operation counts promise."""
    from finepruner_lmms.bench.session import measure, write
    from finepruner_lmms.commands.preflight import check_folder

    if redraw is not None:
        if pretrained or like:
            raise FieldError("--redraw", "measures nothing", value=redraw, fix="leave --pretrained and --like out")
        check_folder("--out", out or redraw.parent)
        sys.stdout.write(write(redraw, out or redraw.parent))
        return
    asked: dict[str, Any] = {"pretrained": pretrained, "like": like, "methods": methods, "batch": batch}
    asked |= {"execution": execution, "tokens": tokens, "text": text, "rounds": rounds}
    asked |= {"device": device, "dtype": dtype}
    if out is not None:
        check_folder("--out", out)
    result = measure(asked, out)
    sys.stdout.write(write(result, result.parent))
