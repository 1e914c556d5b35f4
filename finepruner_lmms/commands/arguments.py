"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The matrix file (YAML).", show_default=False)]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The directory of a run.", show_default=False)]
Outputs = Annotated[
    list[Path], typer.Argument(metavar="OUTPUT...", help="The directory of a run, or of several.", show_default=False)
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Where results go.", show_default="runs/<name of the matrix>")
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=1, show_default="as the matrix file says",
        help="At most N questions of each task, whatever the matrix file says: for a first try.",
    ),
]  # fmt: skip
