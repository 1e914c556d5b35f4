"""`finepruner prepare` for people: plans, progress, and a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from tabulate import tabulate

from finepruner_lmms.data.errors import DataError, UnfetchedFiles
from finepruner_lmms.data.plan import Options, Plan, make_plan
from finepruner_lmms.data.prepare import carry_out
from finepruner_lmms.output import plain, say

if TYPE_CHECKING:
    from finepruner_lmms.data.jobs import Job
    from finepruner_lmms.data.manifest import Manifest

Row = tuple[str, str, str, str, str, str]
_EVERY = 10.0  # seconds between two lines about a file, where there is no terminal


class _Lines:
    """Progress as plain lines, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name, self._size, self._have, self._said = "", 0, 0, 0.0

    def note(self, text: str) -> None:
        say(self._console, text)

    def start(self, name: str, size: int) -> None:
        self._name, self._size, self._have, self._said = name, size, 0, time.monotonic()
        self.note(f"{name}: {in_bytes(size)}")

    def advance(self, size: int) -> None:
        self._have += size
        if time.monotonic() - self._said > _EVERY:
            self._said = time.monotonic()
            self.note(f"{self._name}: {in_bytes(self._have)} of {in_bytes(self._size)}")


class _Bars:
    """Progress as bars, on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None

    def note(self, text: str) -> None:
        say(self._progress.console, text)

    def start(self, name: str, size: int) -> None:
        self._bar = self._progress.add_task(plain(name), total=size)

    def advance(self, size: int) -> None:
        if self._bar is not None:
            self._progress.advance(self._bar, size)


def prepare_all(root: Path, jobs: Sequence[Job], options: Options, dry_run: bool, console: Console) -> int:
    """Prepare each job, whatever becomes of the others; prints a summary. Returns how many failed."""
    summary: list[Row] = []
    failures: list[str] = []
    failed = 0
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True) if console.is_terminal else None
    with progress or nullcontext():
        display = _Bars(progress) if progress is not None else _Lines(console)
        for job in jobs:
            try:
                plan = make_plan(root, job, options, len(jobs) == 1, display)
                if dry_run:
                    _add_plan(summary, plan)
                else:
                    manifest = carry_out(root, plan, options, display)
                    _add_done(summary, manifest, "there" if plan.present else "prepared")
            except (DataError, OSError) as error:  # the other jobs may still succeed
                reasons = error.problems if isinstance(error, UnfetchedFiles) else (error,)
                failures += [f"{job.name}: {reason}" for reason in reasons]
                failed += 1
                display.note(f"{job.name}: failed: {error}")
                summary.append((job.name, "", "", "", "", "failed"))
    shown = [tuple(map(plain, row)) for row in summary]
    console.print(
        tabulate(shown, ("", "files", "size", "rows", "revision", ""), "plain", disable_numparse=True), soft_wrap=True
    )
    if dry_run:
        say(console, "nothing was written")
    elif not failures:
        say(console, f"ready: data: {root.resolve()}")
    if failures:
        say(console, f"failed, {failed} of {len(jobs)}; what was fetched is kept, the same command goes on from here:")
    for failure in failures:
        say(console, f"- {failure}")
    return failed


def _add_plan(summary: list[Row], plan: Plan) -> None:
    if plan.present is not None:
        _add_done(summary, plan.present, "there")
        return
    fetched = f"{in_bytes(plan.to_fetch)} to fetch" if plan.origin == "hub" else f"from the {plan.origin}"
    rows = "+".join(f"{table.rows}" for table in plan.job.tables)
    about = (plan.job.name, f"{len(plan.items)}", in_bytes(plan.size), rows, (plan.commit or "")[:12], fetched)
    summary.append(about)
    for item in plan.items:
        summary.append((f"- {item.path}", "", in_bytes(item.remote.size), "", "", str(item.local or "")))


def _add_done(summary: list[Row], manifest: Manifest, state: str) -> None:
    rows = "+".join(str(count) for count in manifest.rows.values())
    if manifest.rows != manifest.expected_rows:
        rows += f" (not {'+'.join(str(count) for count in manifest.expected_rows.values())})"
    if not all(file.compared for file in manifest.files):
        state += ", hashes not compared with the hub's"
    summary.append(
        (manifest.name, str(len(manifest.files)), in_bytes(manifest.size), rows, (manifest.revision or "")[:12], state)
    )


def in_bytes(size: int) -> str:
    """`1.23 GB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.2f} GB"
