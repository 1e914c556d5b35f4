"""One call of the command: measuring with a line of progress, and its three files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from finepruner_lmms.bench import record
from finepruner_lmms.bench.plot import draw
from finepruner_lmms.bench.report import markdown
from finepruner_lmms.bench.request import check_request
from finepruner_lmms.bench.run import run
from finepruner_lmms.files import write_text
from finepruner_lmms.output import console, plain, rich_text, say


def measure(asked: dict[str, Any], out: Path | None) -> Path:
    """Measure what the options ask for; returns where the figures are (`bench.json`)."""
    request = check_request(**asked)
    folder = Path("runs") / f"bench-{request.name}" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)  # before minutes of measuring: it may be refused
    shown = console(stderr=True)
    with shown.status("") as status:
        note = (lambda text: status.update(rich_text(text))) if shown.is_terminal else partial(say, shown)
        found = run(request, note=note)
    result = folder / "bench.json"
    record.save(found, result)
    return result


def write(result: Path, folder: Path) -> str:
    """Table and picture of `bench.json` into `folder`; returns the table and where everything is."""
    found = record.load(result)
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "bench.md", folder / "bench.png"
    write_text(table, markdown(found))
    draw(found, picture)
    return "\n".join([markdown(found), *map(plain, (result, table, picture)), ""])
