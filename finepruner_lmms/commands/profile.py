"""Which heads look at what a question is about: a profile for `head_strategy=profile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finepruner_lmms.errors import FieldError, check_choice, check_integer

_DATA = ("demo", "demo-tuning", "demo-hard-tuning")


def profile(
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="Where the profile goes.", show_default=False)],
    pretrained: Annotated[str, typer.Option(help="A LLaVA-1.5: hub id, folder, or demo.")] = "demo",
    data: Annotated[
        str, typer.Option(help="Scenes whose objects are known: demo (its tuning split), or demo-hard-tuning.")
    ] = "demo",
    criterion: Annotated[
        str, typer.Option(help="evidence, hits, compactness, mass, or gradient, an oracle that knows the answers.")
    ] = "evidence",
    control: Annotated[
        str, typer.Option(help="Write a control in its place: heads, weights or noise.", metavar="KIND")
    ] = "",
    seed: Annotated[int, typer.Option(help="By which --control is drawn.")] = 0,
    questions: Annotated[int, typer.Option(help="How many questions, each about a scene of its own.")] = 60,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16")] = "auto",
) -> None:
    """Score every head by its attention on tuning questions, and write a weight for each that helps."""
    from finepruner_lmms.commands.preflight import check_file
    from finepruner_lmms.heads.controls import CONTROLS
    from finepruner_lmms.heads.criteria import CRITERIA

    check_choice("--criterion", criterion, CRITERIA)
    check_choice("--data", data, _DATA)
    check_integer("--questions", questions, 2)
    check_integer("--seed", seed, 0)
    if control:
        check_choice("--control", control, CONTROLS)
    if out.suffix != ".json":
        raise FieldError("--out", f"got {str(out)!r}; the name of a profile ends in .json", value=out)
    check_file("--out", out)

    from finepruner_lmms.bench.profiling import measure
    from finepruner_lmms.files import write_json

    controlled = (control, seed) if control else None
    found = measure(pretrained, criterion, questions, device, dtype, data=data, controlled=controlled)
    write_json(out, found.as_json())
    sys.stdout.write(found.told(out))
