"""What the hub, a mirror of it (`HF_ENDPOINT`) or the local hub cache has of a repository, and fetching one file.

huggingface_hub lists, authorises and sends the requests. Its own download is not used: it keeps no partial file once
the process has ended, and compares sizes only, not hashes.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.errors import first_line

Kind = Literal["dataset", "model"]
_TRIES = 5  # in a row without a single byte
_TIMEOUT = 30.0  # seconds without a byte
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
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().repo_info(repo, repo_type=kind, timeout=_COMMIT_TIMEOUT).sha
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx2.TransportError):  # no network, no login, no such repository
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
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        commit = api.repo_info(repo, repo_type=kind, revision=revision, timeout=_TIMEOUT).sha
        entries = list(api.list_repo_tree(repo, recursive=True, repo_type=kind, revision=commit))
    except OfflineModeIsEnabled as error:
        raise Unreachable(repo, "the network is switched off (HF_HUB_OFFLINE)") from error
    except GatedRepoError as error:
        raise DataError(
            repo, f"its owners ask for a login: accept its terms on {api.endpoint}, then set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError("revision", f"{repo} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise DataError(repo, f"no such {kind} at {api.endpoint}, or it needs a login (HF_TOKEN)") from error
    except (HfHubHTTPError, httpx2.TransportError) as error:
        raise Unreachable(repo, f"{api.endpoint} does not answer: {first_line(error)}") from error
    files = [
        Remote(entry.path, entry.size, *((entry.lfs.sha256, "") if entry.lfs else ("", entry.blob_id)))
        for entry in entries
        if isinstance(entry, RepoFile) and _matches(entry.path, patterns)
    ]
    return Listing(commit, tuple(files), _cached(repo, kind, commit, files))


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
    nothing, or if what has arrived is not what the hub declares; then nothing is left.
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
    import httpx2
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not listed in its module
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    url = hf_hub_url(repo, remote.origin, repo_type=kind, revision=commit)
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    with part.open("ab") as file:
        have = file.tell()
        if have > remote.size:
            file.truncate(0)
            have = 0
        tell(have)
        while have < remote.size:
            before, reason = have, "it ended early"
            try:
                asked = headers | ({"Range": f"bytes={have}-"} if have else {})
                with http_stream_backoff("GET", url, headers=asked, timeout=_TIMEOUT, retry_on_exceptions=()) as reply:
                    hf_raise_for_status(reply)
                    if have and reply.status_code != 206:  # no ranges here: from the start
                        file.truncate(0)
                        tell(-have)
                        have = before = 0
                    for block in reply.iter_bytes():
                        file.write(block)
                        have += len(block)
                        tell(len(block))
            except HfHubHTTPError as error:
                raise DataError(repo, f"{remote.origin} cannot be fetched: {first_line(error)}") from error
            except httpx2.TransportError as error:
                reason = first_line(error)
            failures = failures + 1 if have <= before else 0
            if failures >= _TRIES:
                raise DataError(
                    repo,
                    f"{remote.origin}: no answer {_TRIES} times in a row ({reason}); {have:,} of "
                    f"{remote.size:,} bytes are kept, the same command goes on from there",
                )
            if have < remote.size:
                file.flush()
                time.sleep(min(8.0, 0.25 * 2**failures))
        file.flush()
        os.fsync(file.fileno())


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
