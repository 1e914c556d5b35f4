"""Preparing a data root: take what is here already, fetch the rest, check, publish.

A job's files are put together in `ROOT/.incoming/<job>` and the folder moved into place when all of it is right, so
that whatever interrupts it, a folder under its final name is complete. What has been fetched stays there, partial files
included, for the next attempt. One process at a time works on a job; the lock goes with the process.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from finepruner_lmms.claims import Locked, lock
from finepruner_lmms.data.errors import DataError, UnfetchedFiles
from finepruner_lmms.data.hub import Remote, fetch, sha256_of
from finepruner_lmms.data.manifest import INCOMING, MANIFEST, File, Manifest, read_manifest
from finepruner_lmms.data.plan import Display, Item, Options, Plan, whats_wrong
from finepruner_lmms.files import sync_folder

_SPARE = 1 << 28  # bytes that must stay free


def carry_out(root: Path, plan: Plan, options: Options, display: Display) -> Manifest:
    """Do it; returns the manifest of what is in place then. `DataError` leaves what was fetched for another attempt."""
    if plan.present is not None:
        return plan.present
    try:
        with lock(root / INCOMING / f"{plan.job.name}.lock"):
            return _carry_out(root, plan, options, display)
    except Locked as error:
        problem = f"is being prepared by {error.holder}"
        raise DataError(plan.job.name, problem, fix="wait until it is done, or stop it") from error


def _carry_out(root: Path, plan: Plan, options: Options, display: Display) -> Manifest:
    """Do it, while nobody else does."""
    staging = root / INCOMING / plan.job.name
    done = read_manifest(root / plan.job.name)
    if (
        done is not None
        and done.revision == plan.commit
        and not whats_wrong(root / plan.job.name, done, options.verify)
    ):
        return done  # another process was faster
    _check_space(root, staging, plan)
    files, problems = [], []
    for item in plan.items:
        target = staging / item.path
        try:
            _obtain(plan, item, target, display)
        except DataError as error:  # the other files are fetched all the same
            problems.append(error)
            if len(plan.items) > 1:
                display.note(f"{plan.job.name}/{item.path}: failed: {error.problem}")
            continue
        compared = bool(item.remote.sha256 or item.remote.git)
        digest = item.remote.sha256 or sha256_of(target)
        files.append(File(item.path, item.remote.origin, item.remote.size, digest, compared))
    if problems:
        raise problems[0] if len(problems) == 1 else UnfetchedFiles(plan.job.name, problems, len(plan.items))
    _remove_others(staging, {file.path for file in files})
    rows, total = plan.job.check(staging, [file.path for file in files], options.accept_rows)
    files = [File(**vars(file) | {"rows": rows.get(file.path)}) for file in files]
    expected = {table.folder: table.rows for table in plan.job.tables if table.rows is not None}
    job = plan.job
    manifest = Manifest(job.name, job.repo, job.asked, plan.commit, tuple(files), total, expected)
    manifest.write(staging)
    _publish(staging, root / plan.job.name, done)
    return manifest


def _check_space(root: Path, staging: Path, plan: Plan) -> None:
    """Raise `DataError` if what is not in `staging` yet does not fit on the disk."""
    needed = 0
    device = staging.parent.stat().st_dev
    for item in plan.items:
        linked = item.local is not None and item.local.stat().st_dev == device
        if not linked and not (staging / item.path).is_file():
            part = _part(staging / item.path, item.remote)
            needed += item.remote.size - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(root).free
    if needed + _SPARE > free:
        raise DataError(
            plan.job.name,
            f"needs {needed / 1e9:.2f} GB, but {root} has {max(0, free - _SPARE) / 1e9:.2f} GB to spare",
            fix="free some, or choose another --data",
        )


def _part(target: Path, remote: Remote) -> Path:
    """Where a file is while it is fetched; of another content, another file."""
    return target.with_name(f"{target.name}.{(remote.sha256 or remote.git or 'local')[:12]}.part")


def _obtain(plan: Plan, item: Item, target: Path, display: Display) -> None:
    """Have the file at `target`, with the right content: left there before, from this machine, or from the hub."""
    part = _part(target, item.remote)
    if target.is_file():
        # without a declared hash only the size could be compared
        if (item.remote.sha256 or item.remote.git) and item.remote.fits(target):
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    if item.local is not None:
        if item.remote.fits(item.local):
            part.unlink(missing_ok=True)
            _link_or_copy(item.local, part)
            part.replace(target)
            return
        display.note(f"{plan.job.name}: {item.local} is not what the hub declares; fetching it")
    if plan.commit is None or plan.origin != "hub":
        raise DataError(plan.job.name, f"{item.local} is not what it is said to be, and the hub cannot be asked")
    display.start(f"{plan.job.name}/{item.path}", item.remote.size)
    fetch(plan.job.repo, plan.job.kind, plan.commit, item.remote, part, display.advance)
    part.replace(target)


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it, which costs nothing; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as read, target.open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 20)
            write.flush()
            os.fsync(write.fileno())


def _remove_others(staging: Path, wanted: set[str]) -> None:
    """Take away what earlier attempts at another revision left."""
    for path in list(staging.rglob("*")):
        if path.is_file() and path.relative_to(staging).as_posix() not in wanted:
            path.unlink()


def _publish(staging: Path, final: Path, done: Manifest | None) -> None:
    """Move a complete folder into place. What `done`, the one before, did not list was not ours, and comes along."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if done is not None and final.exists():
        _carry_over(final, staging, {MANIFEST, *(file.path for file in done.files)})
    old = staging.with_name(f"{staging.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    staging.rename(final)
    for folder in {final.parent, staging.parent}:
        sync_folder(folder)
    shutil.rmtree(old, ignore_errors=True)


def _carry_over(old: Path, new: Path, ours: set[str]) -> None:
    """Link the files that somebody put beside ours, such as the questions of a test split."""
    places = {str(Path(name).parent) for name in ours}
    for path in old.rglob("*"):
        relative = path.relative_to(old)
        if path.is_file() and relative.as_posix() not in ours and not (new / relative).exists():
            if path.suffix == ".parquet" and str(relative.parent) in places:
                raise DataError("data", f"{path} lies among the files of a benchmark and is none", fix="move it away")
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, new / relative)
