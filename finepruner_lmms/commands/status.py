"""How far a study is."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from finepruner_lmms.commands.arguments import Output


def status(
    output: Output, as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON object.")] = False
) -> None:
    """List done, running, waiting, failed and missing cells, with each failure's reason."""
    from finepruner_lmms.matrix.status import status_json, status_text
    from finepruner_lmms.matrix.store import Store

    store = Store(output)
    sys.stdout.write((status_json if as_json else status_text)(store, store.study()))
