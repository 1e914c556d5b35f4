"""The command `export`: which formats there are, and where each goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.matrix.export.study import Exported
from finepruner_lmms.matrix.store import Store

Writer = Callable[[Exported, Path], list[Path]]


def _csv(source: Exported, folder: Path) -> list[Path]:
    from finepruner_lmms.matrix.export.tabular import write_csv

    return write_csv(source, folder)


def _parquet(source: Exported, folder: Path) -> list[Path]:
    from finepruner_lmms.matrix.export.tabular import write_parquet

    return write_parquet(source, folder)


def _every_eval_ever(source: Exported, folder: Path) -> list[Path]:
    from finepruner_lmms.matrix.export.every_eval_ever import write_evaluations

    return write_evaluations(source, folder)


def _hub(source: Exported, folder: Path) -> list[Path]:
    from finepruner_lmms.matrix.export.hub_results import write_entries

    return write_entries(source, folder)


def _inspect(source: Exported, folder: Path) -> list[Path]:
    from finepruner_lmms.matrix.export.inspect_log import write_logs

    return write_logs(source, folder)


FORMATS: dict[str, Writer] = {
    "csv": _csv, "parquet": _parquet, "eee": _every_eval_ever, "hf": _hub, "inspect": _inspect
}  # fmt: skip
"""By the name that `--format` takes."""


def export_run(root: Path, forms: str, to: Path | None, pictures: int = 200) -> list[str]:
    """Write what is done in an output directory, in each of the formats `forms` (with commas between); what to print.

    Files of one format go to `to`, or `root/export/<format>`; of several to a folder each, below these.
    """
    names = [name.strip() for name in forms.split(",") if name.strip()]
    for name in names or [""]:
        check_choice("--format", name, FORMATS)
    source = Exported.of(Store(root), pictures)
    if not source.finished:
        raise FieldError("OUTPUT", f"no cell of {str(root)!r} is done, so there is nothing to export", value=str(root))
    lines = []
    for name in dict.fromkeys(names):
        folder = root / "export" / name if to is None else to / name if len(names) > 1 else to
        folder.mkdir(parents=True, exist_ok=True)
        files = FORMATS[name](source, folder)
        shown = [str(file) for file in files] if len(files) <= 4 else [f"{folder} ({len(files)} files)"]
        lines += [f"{name}: {text}" for text in shown]
    left = len(source.states) - len(source.finished)
    if left:
        lines.append(f"{left} of {len(source.states)} cells are not done; only their state is in the table of cells")
    return [*lines, *source.notes]
