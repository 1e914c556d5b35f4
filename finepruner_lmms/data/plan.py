"""What preparing a job means: which files, where each goes, and where one lies already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.hub import Listing, Remote, Unreachable, cached_listing, folder_listing, listing, sha256_of
from finepruner_lmms.data.jobs import Job
from finepruner_lmms.data.manifest import Manifest, check_files, read_manifest


@dataclass(frozen=True)
class Item:
    """A file to have: `path` below the job's folder; `local` where one lies that may have the right content."""

    remote: Remote
    path: str
    local: Path | None


@dataclass(frozen=True)
class Plan:
    """What preparing a job means. `items` is empty where `present`, the manifest of what is there, is all there is."""

    job: Job
    commit: str | None
    items: tuple[Item, ...]
    origin: str
    present: Manifest | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.remote.size for item in self.items)

    @property
    def to_fetch(self) -> int:
        """Bytes that must come from the network, unless a file that is here turns out to be another one."""
        return sum(item.remote.size for item in self.items if item.local is None)


class Display(Protocol):
    """Who shows the progress."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def start(self, name: str, size: int) -> None:
        """A file of so many bytes comes from the network."""

    def advance(self, size: int) -> None:
        """So many bytes more of it."""


@dataclass(frozen=True)
class Options:
    """`folder`: where downloaded files lie (`--from`). `verify`: hash what is there already."""

    folder: Path | None = None
    accept_rows: bool = False
    verify: bool = False


def make_plan(root: Path, job: Job, options: Options, alone: bool, display: Display) -> Plan:
    """What there is to do for a job; nothing is written. `DataError` where files cannot be found.

    A folder that is complete stays as it is, unless a revision is asked for that is another one; the hub is not asked.
    """
    present = read_manifest(root / job.name)
    if present is None and (root / job.name).exists():
        raise DataError(
            "data",
            f"{root / job.name} was not made by `prepare`",
            fix="move it away, and give it by --from to take its files",
        )
    if present is not None and job.revision in (None, present.revision):
        broken = whats_wrong(root / job.name, present, options.verify)
        if not broken:
            return Plan(job, present.revision, (), "there", present)
        display.note(f"{job.name}: {broken}; preparing it anew")
        job = replace(job, revision=present.revision or present.asked)  # a repair changes nothing else
    found, origin = _find(job, options, alone, display)
    files = {remote.origin: remote for remote in found.files}
    items = tuple(_item(root, job, files[name], found.local.get(name)) for name in job.wanted(list(files)))
    if not items:
        raise DataError(job.repo, f"holds no files like {', '.join(job.patterns)}")
    if len({item.path for item in items}) != len(items):
        raise DataError(job.repo, f"two files have one name: {', '.join(sorted(item.path for item in items))}")
    return Plan(job, found.commit, items, origin)


def _item(root: Path, job: Job, remote: Remote, local: Path | None) -> Item:
    """A file to have; one that an earlier `prepare` put into place is taken again if it still fits."""
    path = job.place(remote.origin)
    mine = root / job.name / path
    if (remote.sha256 or remote.git) and mine.is_file() and mine.stat().st_size == remote.size:
        local = mine
    return Item(remote, path, local)


def _find(job: Job, options: Options, alone: bool, display: Display) -> tuple[Listing, str]:
    """The files of a job, and in a word where they come from."""
    given = _given(job, options.folder, alone) if options.folder is not None else None
    try:
        remote = listing(job.repo, job.kind, job.asked, job.patterns)
    except Unreachable as reason:
        if given is not None and given.files:
            display.note(f"{reason}; taking {options.folder}, whose hashes cannot be compared")
            return given, "folder"
        try:
            return cached_listing(job.repo, job.kind, job.asked, job.patterns), "hub cache"
        except DataError as error:
            raise DataError(reason.field, f"{reason.problem}; {error.problem}") from error
    local = dict(remote.local)
    if given is not None:
        by_place = {job.place(origin): path for origin, path in given.local.items()}
        local |= {f.origin: by_place[job.place(f.origin)] for f in remote.files if job.place(f.origin) in by_place}
    return Listing(remote.commit, remote.files, local), "hub"


def _given(job: Job, folder: Path, alone: bool) -> Listing:
    parts = [folder_listing(places) for places in job.places(folder, alone)]
    local: dict[str, Path] = {}
    files: list[Remote] = []
    for number, part in enumerate(parts):
        for remote in part.files:
            # below the table's own folder, whatever the layout was, so that each goes to its place
            origin = remote.origin
            if job.tables:
                origin = str(Path(job.tables[number].files).parent / Path(origin).name)
            local[origin] = part.local[remote.origin]
            files.append(Remote(origin, remote.size))
    return Listing(None, tuple(files), local)


def whats_wrong(folder: Path, manifest: Manifest, verify: bool) -> str:
    """What is wrong with a folder that has a manifest, or ""."""
    try:
        check_files(folder, manifest)
    except DataError as error:
        return error.problem
    if verify:
        for file in manifest.files:
            if sha256_of(folder / file.path) != file.sha256:
                return f"{folder / file.path} is not what it was (sha256)"
    return ""
