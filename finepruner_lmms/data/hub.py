"""What the hub, a mirror of it (`HF_ENDPOINT`) or the local hub cache has of a repository, and fetching one file.

Requests go through `hub_http`. huggingface_hub's own download is not used: it keeps no partial file once the process
has ended, and compares sizes only, not hashes.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import quote

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.hub_http import (
    SILENCE,
    Odd,
    Offline,
    Passing,
    Refused,
    body,
    get,
    get_json,
    kind_of,
    portal,
)
from finepruner_lmms.errors import first_line, show

if TYPE_CHECKING:
    import httpx2

Kind = Literal["dataset", "model"]
_TRIES = 5  # in a row without progress
_PROGRESS = 1 << 16  # bytes that make a try no failure, or all that were left
_SPELL, _LEAST_PER_SPELL = 60.0, 1 << 16  # seconds, and the bytes that must come in them
_NO_SUCH_RANGE = 416
_MOST_PAGES = 1000
_LONGEST_PATH = 1000  # characters
_LARGEST = 1 << 50  # bytes of a file that is believed
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20}|\*)", re.ASCII)
_COMMIT_TIMEOUT = 10.0  # seconds for a single small answer
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Unreachable(DataError):
    """The hub cannot be asked: no network, or it is switched off by HF_HUB_OFFLINE."""


@dataclass(frozen=True)
class Remote:
    """A file of a repository. Large files have a `sha256`, others the `git` hash of their content; either may be ''."""

    origin: str
    size: int
    sha256: str = ""
    git: str = ""

    def fits(self, path: Path) -> bool:
        """Whether the file at `path` has the declared content; where nothing is declared, the size decides."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_of(path) == self.sha256
        return not self.git or git_hash_of(path) == self.git


@dataclass(frozen=True)
class Listing:
    """Files of a repository at one commit; `local` where each is, if it is on this machine already."""

    commit: str | None
    files: tuple[Remote, ...]
    local: dict[str, Path]


def offline() -> bool:
    """Whether the network is switched off for the hub's libraries (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def in_cache(repo: str, name: str) -> bool:
    """Whether the hub cache holds a file of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, name), str)


@functools.cache
def commit_of(repo: str, kind: Kind) -> str | None:
    """The commit of a repository that is read here: the hub's newest, or offline that in the local cache; or None.

    None where the hub does not answer and no commit of the repository was ever cached on this machine.
    """
    try:
        return _commit(repo, kind, None, _COMMIT_TIMEOUT, tries=1)
    except DataError:  # no network, no login, no such repository
        return _cached_commit(repo, kind)


def _cached_commit(repo: str, kind: Kind) -> str | None:
    from datasets import config
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
    if (main := folder / "refs" / "main").is_file():
        return main.read_text(encoding="utf-8").strip()
    snapshots = [path.name for path in folder.glob("snapshots/*") if path.is_dir()]
    if kind == "dataset" and not snapshots:  # as `datasets` stores what it has read: <name>/<version>/<commit>
        tables = Path(config.HF_DATASETS_CACHE).glob(f"{repo.replace('/', '___')}/*/*/*")
        snapshots = [path.name for path in tables if path.is_dir() and _COMMIT.fullmatch(path.name)]
    return snapshots[0] if len(set(snapshots)) == 1 else None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_hash_of(path: Path) -> str:
    """The hash that git gives the content of a file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listing(repo: str, kind: Kind, revision: str, patterns: Sequence[str]) -> Listing:
    """Ask the hub. `Unreachable` if it does not answer; `DataError` if there is no such repository or revision."""
    commit = _commit(repo, kind, revision, SILENCE, _TRIES)
    with _told_of(repo, kind, revision):
        entries = _tree(f"{_api(repo, kind)}/tree/{commit}?recursive=true")
        files = tuple(_remote(entry) for entry in entries if _is_wanted(entry, patterns))
    return Listing(commit, files, _cached(repo, kind, commit, files))


def _commit(repo: str, kind: Kind, revision: str | None, silence: float, tries: int) -> str:
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    with _told_of(repo, kind, revision):
        about, _ = _page(f"{_api(repo, kind)}{at}", silence, tries)
        commit = about.get("sha") if isinstance(about, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise Odd("the answer does not name a commit, as the hub does")
        return commit


def _api(repo: str, kind: Kind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/api/{kind}s/{quote(repo)}"


@contextmanager
def _told_of(repo: str, kind: Kind, revision: str | None) -> Iterator[None]:
    """What the hub's answers about a repository mean."""
    from huggingface_hub import constants

    try:
        yield
    except Offline:
        raise Unreachable(repo, "the network is switched off (HF_HUB_OFFLINE)") from None
    except Passing as error:
        raise Unreachable(repo, f"{constants.ENDPOINT} does not answer: {error}") from None
    except Refused as error:
        if error.code == "GatedRepo":
            problem = f"its owners ask for a login: accept its terms on {constants.ENDPOINT}, then set HF_TOKEN"
            raise DataError(repo, problem) from None
        if error.code == "RevisionNotFound":
            raise DataError("revision", f"{repo} has no revision {revision!r}") from None
        if error.code == "RepoNotFound" or error.status in (401, 404):
            raise DataError(repo, f"no such {kind} at {constants.ENDPOINT}, or it needs a login (HF_TOKEN)") from None
        raise Unreachable(repo, f"{constants.ENDPOINT} refuses: {error}") from None
    except Odd as error:
        raise Unreachable(repo, f"{constants.ENDPOINT} does not answer as the hub does: {error}") from None


def _tree(url: str) -> Iterator[dict[str, Any]]:
    """The entries of a listing, page by page. `Odd` where it has no end."""
    for _ in range(_MOST_PAGES):
        entries, url = _page(url, SILENCE, _TRIES)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise Odd("the answer is not a list of files")
        yield from entries
        if not url:
            return
    raise Odd(f"its list of files has more than {_MOST_PAGES} pages")


def _page(url: str, silence: float, tries: int) -> tuple[Any, str]:
    """`get_json`, several times if it must be."""
    for failures in range(1, tries):
        try:
            return get_json(url, silence)
        except Passing as error:
            time.sleep(max(error.wait, min(8.0, 0.25 * 2**failures)))
    return get_json(url, silence)


def _is_wanted(entry: dict[str, Any], patterns: Sequence[str]) -> bool:
    """Whether an entry of a listing is a file that matches. `Odd` for one whose name would not stay in its place."""
    path = entry.get("path")
    if entry.get("type") != "file" or not isinstance(path, str):
        return False
    name = re.split(r"[/\\]", path)[-1]
    if not any(fnmatch.fnmatchcase(name, Path(pattern).name) for pattern in patterns):
        return False
    if {"", ".", ".."} & set(path.split("/")) or "\\" in path or not path.isprintable() or len(path) > _LONGEST_PATH:
        raise Odd(f"it lists a file named {show(path)}, which is not taken")
    return _matches(path, patterns)


def _remote(entry: dict[str, Any]) -> Remote:
    """A file of a listing. `Odd` where its size or hash is none."""
    large = entry.get("lfs")
    size, git = entry.get("size"), entry.get("oid")
    sha256 = large.get("oid") if isinstance(large, dict) else None
    whole = type(size) is int and 0 <= size < _LARGEST
    hashed = isinstance(sha256, str) and _SHA256.fullmatch(sha256) if large else isinstance(git, str)
    if not whole or not hashed or (isinstance(large, dict) and large.get("size", size) != size):
        raise Odd(f"it lists {show(entry['path'])} with the size {show(size)} and the hash {show(sha256 or git)}")
    return Remote(entry["path"], int(str(size)), sha256 or "", "" if large else str(git))


def cached_listing(repo: str, kind: Kind, revision: str, patterns: Sequence[str]) -> Listing:
    """What the local hub cache holds. `DataError` if it does not hold the revision, or not all of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(
            snapshot_download(
                repo, repo_type=kind, revision=revision, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except LocalEntryNotFoundError as error:
        raise DataError(repo, f"the hub cache does not hold {revision!r}: {first_line(error)}") from error
    files, local = [], {}
    for path in sorted(path for path in snapshot.rglob("*") if path.is_file()):
        origin = path.relative_to(snapshot).as_posix()
        if _matches(origin, patterns):
            blob = path.resolve()  # a blob is named by the hash that the hub declared
            declared = blob.name if blob != path else ""
            hashes = {64: {"sha256": declared}, 40: {"git": declared}}.get(len(declared), {})
            files.append(Remote(origin, blob.stat().st_size, **hashes))
            local[origin] = blob
    return Listing(snapshot.name, tuple(files), local)


def folder_listing(places: Sequence[tuple[Path, Sequence[str]]]) -> Listing:
    """The files of the first place, a folder and patterns, that holds any; nothing is known to compare them with."""
    for folder, patterns in places:
        local = {
            path.relative_to(folder).as_posix(): path.resolve()
            for pattern in patterns
            for path in sorted(folder.glob(pattern))
            if path.is_file()
        }
        if local:
            files = tuple(Remote(origin, path.stat().st_size) for origin, path in local.items())
            return Listing(None, files, local)
    return Listing(None, (), {})


def fetch(repo: str, kind: Kind, commit: str, remote: Remote, part: Path, tell: Callable[[int], None]) -> None:
    """Fetch a file into `part`, going on where an earlier attempt stopped; `tell` hears of every byte that arrives.

    A connection that breaks is taken up again by an HTTP range. `DataError` after five attempts in a row that bring
    nothing new; or if what comes, or has arrived, is not what the hub declares: then nothing is left.
    """
    resumed = part.exists() and 0 < part.stat().st_size <= remote.size
    _transfer(repo, kind, commit, remote, part, tell)
    if remote.fits(part):
        return
    if resumed:  # the bytes of the earlier attempt may be the wrong ones
        tell(-part.stat().st_size)
        part.unlink()
        _transfer(repo, kind, commit, remote, part, tell)
        if remote.fits(part):
            return
    size = part.stat().st_size
    found = sha256_of(part) if remote.sha256 else git_hash_of(part)
    part.unlink()
    raise DataError(
        repo,
        f"{remote.origin} has arrived with {size:,} bytes and the hash {found}, but the hub declares "
        f"{remote.size:,} bytes and {remote.sha256 or remote.git}; it was thrown away, so try again or another mirror",
    )


def _transfer(repo: str, kind: Kind, commit: str, remote: Remote, part: Path, tell: Callable[[int], None]) -> None:
    """Fetch what `part` lacks; it never grows beyond the declared size."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo, remote.origin, repo_type=kind, revision=commit)
    part.parent.mkdir(parents=True, exist_ok=True)
    failures, most = 0, 0  # the most that was ever there: a server without ranges may begin anew without end
    with part.open("ab") as file:
        arrived = _Arrived(file, remote, tell)
        while arrived.size < remote.size:
            reason, wait = "it ended early", 0.0
            try:
                with get(url, arrived.size) as reply:
                    arrived.take(reply)
            except Passing as error:
                reason, wait = str(error), error.wait
            except Offline:
                raise DataError(repo, f"{remote.origin}: the network is switched off (HF_HUB_OFFLINE)") from None
            except Odd as error:
                if not (isinstance(error, Refused) and error.status == _NO_SUCH_RANGE and arrived.size):
                    raise DataError(repo, f"{remote.origin} cannot be fetched: {error}") from None
                reason = str(error)
                arrived.drop()
            enough = arrived.size >= min(most + _PROGRESS, remote.size)
            failures, most = (0, arrived.size) if enough else (failures + 1, max(most, arrived.size))
            if failures >= _TRIES:
                raise DataError(
                    repo,
                    f"{remote.origin}: no answer {_TRIES} times in a row ({reason}); {arrived.size:,} of "
                    f"{remote.size:,} bytes are kept, the same command goes on from there",
                )
            if arrived.size < remote.size:
                file.flush()
                time.sleep(max(wait, min(8.0, 0.25 * 2**failures)))
        file.flush()
        os.fsync(file.fileno())


class _Arrived:
    """What has arrived of a file."""

    def __init__(self, file: BinaryIO, remote: Remote, tell: Callable[[int], None]) -> None:
        self._file, self._remote, self._tell = file, remote, tell
        self.size = file.tell()
        tell(self.size)
        if self.size > remote.size:
            self.drop()

    def take(self, reply: httpx2.Response) -> None:
        """Write what a reply brings. `Odd` where it is not the rest of this file, `Passing` where it crawls."""
        self._check(reply)
        since, then = time.monotonic(), self.size
        for block in body(reply):
            fits = block[: self._remote.size - self.size]
            self._file.write(fits)
            self.size += len(fits)
            self._tell(len(fits))
            if len(fits) < len(block):
                self.drop()  # what came before is as doubtful
                raise Odd(f"it is longer than the declared {self._remote.size:,} bytes; it was thrown away")
            if time.monotonic() - since > _SPELL:
                if self.size - then < _LEAST_PER_SPELL:
                    raise Passing(f"only {self.size - then:,} bytes came in {_SPELL:.0f} seconds")
                since, then = time.monotonic(), self.size

    def _check(self, reply: httpx2.Response) -> None:
        """Before a byte is written: that it is of the right size, begins at the right place, and is no page."""
        declared, kind = self._remote.size, kind_of(reply)
        if kind == "text/html" and Path(self._remote.origin).suffix not in (".html", ".htm"):
            raise Odd(f"it is not the file{portal(kind)}")
        if reply.status_code == 206:
            found = _RANGE.fullmatch(reply.headers.get("content-range", "").strip()[:100])
            if found is None or int(found[1]) != self.size or found[3] not in ("*", str(declared)):
                asked = f"{self.size}-{declared - 1}/{declared}"
                raise Odd(f"bytes {asked} were asked for, and others came: {reply.headers.get('content-range', '')!r}")
            return
        if self.size:  # no ranges here: from the start
            self.drop()
        length = reply.headers.get("content-length", "")
        if length.isascii() and length.isdecimal() and length != str(declared):
            raise Odd(f"it has {length[:20]} bytes, not the declared {declared:,}")

    def drop(self) -> None:
        """Begin anew."""
        self._file.truncate(0)
        self._tell(-self.size)
        self.size = 0


def _cached(repo: str, kind: Kind, commit: str | None, files: Sequence[Remote]) -> dict[str, Path]:
    from huggingface_hub import try_to_load_from_cache

    found = {}
    for file in files:
        path = try_to_load_from_cache(repo, file.origin, repo_type=kind, revision=commit)
        if isinstance(path, str):
            found[file.origin] = Path(path).resolve()
    return found


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Like `pathlib`'s: a star does not cross a folder."""
    return any(path.count("/") == p.count("/") and fnmatch.fnmatchcase(path, p) for p in patterns)
