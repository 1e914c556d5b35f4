"""What there is to prepare: a benchmark or a checkpoint, as files of a repository and where they go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import FACTS, Table
from finepruner_lmms.data.hub import Kind
from finepruner_lmms.data.verify import check_rows, check_table, lacking_weights
from finepruner_lmms.errors import nearest

# weights come in the first of these forms that there is
_WEIGHTS = ("*.safetensors", "*.bin")
_AROUND_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja")
_LEFT_OUT = ("training_args.bin", "scheduler.bin", "optimizer.bin", "manifest.json")
_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Job:
    """One folder of a data root: `name` is the task or `checkpoints/<owner>/<name>`.

    Without a `revision`, what is there stays as it is, and what is not there comes from `main`.
    """

    name: str
    repo: str
    kind: Kind
    revision: str | None = None
    tables: tuple[Table, ...] = ()
    source: str = ""

    @property
    def asked(self) -> str:
        """The revision to ask the hub for."""
        return self.revision or "main"

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files it needs, as patterns below the repository."""
        return tuple(table.files for table in self.tables) or (*_AROUND_WEIGHTS, *_WEIGHTS)

    def wanted(self, origins: Sequence[str]) -> list[str]:
        """Of the files that match the patterns, those to take."""
        if self.tables:
            return list(origins)
        kept = [origin for origin in origins if Path(origin).name not in _LEFT_OUT]
        weights = {form: [origin for origin in kept if Path(origin).match(form)] for form in _WEIGHTS}
        form = next((form for form in _WEIGHTS if weights[form]), "")
        unwanted = {origin for other in _WEIGHTS if other != form for origin in weights[other]}
        unwanted |= {f"{origin}" for origin in kept if form == "*.safetensors" and origin.endswith(".bin.index.json")}
        return [origin for origin in kept if origin not in unwanted]

    def place(self, origin: str) -> str:
        """Where a file of the repository goes, below the job's folder."""
        for table in self.tables:
            if Path(origin).parent == Path(table.files).parent:
                return f"{table.folder}/{Path(origin).name}".lstrip("/")
        return Path(origin).name

    def places(self, folder: Path, alone: bool) -> list[list[tuple[Path, Sequence[str]]]]:
        """Where files may lie in `folder` (`--from`): for each table the possible places, the likeliest first.

        As the repository itself below its name, or as a data root; `alone`: `folder` itself may be either.
        """
        below = [folder / self.name, folder / self.repo, folder / Path(self.repo).name]
        below += [folder] if alone else []
        if not self.tables:
            return [[(place, self.patterns) for place in below]]
        found: list[list[tuple[Path, Sequence[str]]]] = []
        for table in self.tables:
            as_repository = [(place, (table.files,)) for place in below]
            as_root = [(place / table.folder, ("*.parquet",)) for place in below]
            found.append([pair for pairs in zip(as_repository, as_root, strict=True) for pair in pairs])
        return found

    def check(self, folder: Path, paths: Sequence[str], accept_rows: bool) -> tuple[dict[str, int], dict[str, int]]:
        """Check what has been put together in `folder`: rows of each file, and of each table."""
        if not self.tables:
            _check_checkpoint(folder, self.name)
            return {}, {}
        rows: dict[str, int] = {}
        total: dict[str, int] = {}
        for table in self.tables:
            what = f"{self.name}/{table.folder}".rstrip("/")
            own = [folder / path for path in sorted(paths) if str(Path(path).parent) == (table.folder or ".")]
            found = check_table(own, table, what)
            total[table.folder] = sum(found.values())
            if not accept_rows:
                check_rows(total[table.folder], table, what, self.source)
            rows |= {path.relative_to(folder).as_posix(): count for path, count in found.items()}
        return rows, total


def task_jobs(names: Sequence[str], revisions: Mapping[str, str]) -> list[Job]:
    """One job per benchmark. `DataError` for names that are not known."""
    for name in (*names, *revisions):
        if name not in FACTS:
            fix = f"known: {', '.join(FACTS)}; lmms-eval's other tasks fetch their data themselves when they run"
            raise DataError("tasks", f"unknown task {name!r}{nearest(name, FACTS)}", fix=fix)
    for name in revisions:
        if name not in names:
            raise DataError("revision", f"{name!r} is not among the tasks to prepare: {', '.join(names)}")
    jobs = []
    for name in dict.fromkeys(names):
        facts = FACTS[name]
        jobs.append(Job(name, facts.repo, "dataset", revisions.get(name), facts.tables, facts.source))
    return jobs


def checkpoint_job(text: str) -> Job:
    """`owner/name`, or `owner/name@revision`."""
    repo, _, revision = text.partition("@")
    if not _ID.fullmatch(repo):
        raise DataError("checkpoint", f"got {text!r}", fix="expected owner/name or owner/name@revision, as on the hub")
    return Job(f"checkpoints/{repo}", repo, "model", revision or None)


def _check_checkpoint(folder: Path, name: str) -> None:
    """Raise `DataError` unless there are a configuration and all weights that the index names."""
    if not (folder / "config.json").is_file():
        raise DataError(name, "there is no config.json, so it is not a checkpoint")
    if not any(path for form in _WEIGHTS for path in folder.glob(form)):
        raise DataError(name, f"there are no weights ({' or '.join(_WEIGHTS)})")
    if lacking := lacking_weights(folder):
        raise DataError(name, f"weights are not there that its index names: {', '.join(lacking)}")
