"""Files that are never half written, or read as half written: the one place that does it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from finepruner_lmms.errors import FieldError


def write_bytes(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Replace a file as a whole: no reader and no power cut ever sees half of it. Its folder must exist.

    What is not `lasting` may be gone after a power cut, and costs no wait for the disk.
    """
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")  # of no other process or thread
    try:
        with partial.open("wb") as file:
            file.write(content)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # that of a write names no file, others the partial one
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
    if lasting:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def try_to_write(folder: Path) -> None:
    """Write, rename and remove a file in a folder, which is made; `OSError` where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    tried = folder / f".try-{secrets.token_hex(6)}"
    try:
        write_bytes(tried, b"x" * 4096)
    finally:
        tried.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> bytes:
    """`write_bytes` of indented JSON; returns the content."""
    content = json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8")
    write_bytes(path, content)
    return content


def write_json_lines(path: Path, values: Iterable[Any]) -> bytes:
    """One JSON value per line, replaced as a whole; returns the content, for sizes and checksums."""
    content = "".join(json.dumps(value, ensure_ascii=False, sort_keys=True) + "\n" for value in values).encode()
    write_bytes(path, content)
    return content


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file, of at most so many bytes.

    `OSError` at once for anything else: a fifo waits for a writer, a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if most is not None and status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes, and at most {most} make sense", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def parse_json(content: bytes) -> Any:
    """The JSON value in UTF-8. `ValueError` for anything else, for a name given twice and for bottomless nesting."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return value


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file or it holds none."""
    try:
        value = parse_json(read_bytes(path))
    except FileNotFoundError:
        return None
    except ValueError:  # not JSON, not UTF-8
        return None
    return value if isinstance(value, dict) else None


def load_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `FieldError` naming the file if there is none."""
    try:
        value = parse_json(read_bytes(path))
    except OSError as error:
        raise FieldError(path.name, f"cannot read {str(path)!r}: {error.strerror}", value=str(path)) from error
    except ValueError as error:  # not JSON, not UTF-8
        problem = f"{str(path)!r} is not valid JSON ({error})"
        raise FieldError(path.name, problem, value=str(path), fix="fetch it again") from error
    if not isinstance(value, dict):
        problem = f"{str(path)!r} holds a {type(value).__name__}, not an object"
        raise FieldError(path.name, problem, value=str(path))
    return value


def split_lines(content: str) -> list[str]:
    r"""The lines of JSON lines, which end with `\n` and nothing else: JSON may hold U+2028 and U+0085 as they are."""
    lines = content.split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def read_json_lines(path: Path) -> list[Any]:
    """The JSON values of a file with one per line. `ValueError` naming file and line where one is none."""
    return parse_json_lines(read_bytes(path), str(path))


def parse_json_lines(content: bytes, name: str) -> list[Any]:
    """The JSON values of a content with one per line. `ValueError` with `name` and line where one is none."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8: {error}") from error
    values = []
    for number, line in enumerate(split_lines(text), 1):
        try:
            values.append(_parse_line(line))
        except ValueError as error:
            raise ValueError(f"{name}:{number}: not JSON: {error}") from error
        except RecursionError:
            raise ValueError(f"{name}:{number}: not JSON: nested too deeply") from None
    return values


_scan = json.JSONDecoder().raw_decode


def _parse_line(line: str) -> Any:
    """`json.loads`, by a shorter way where nothing stands around the value: there may be a million lines."""
    try:
        value, end = _scan(line)
    except ValueError:
        return json.loads(line)
    return value if end == len(line) else json.loads(line)


def set_aside(path: Path) -> Path | None:
    """Rename what is damaged to `<name>.damaged`, or `.damaged-2` and so on; None where nothing is. Never deletes."""
    number = 1
    target = path.with_name(f"{path.name}.damaged")
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    return target


def publish_folder(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder elsewhere, and move it to `target` whole; whoever comes second uses what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        make(partial)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


_REMEMBERED = 1 << 20  # bytes; reading less is as quick as looking it up


def content_hash(path: Path) -> str:
    """The sha256 of a file's content, hexadecimal.

    That of a large file is remembered by its path, size, time and inode in our cache folder, so that it is read once.
    A file that is written anew in place within the clock tick of the file system, at the same size, is not noticed.
    """
    path = path.resolve()
    status = path.stat()
    if status.st_size < _REMEMBERED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    memory = cache_dir() / "content-hashes.json"
    place, state = str(path), [status.st_size, status.st_mtime_ns, status.st_ino]
    with suppress(OSError, NotImplementedError):  # where nothing can be remembered, or locked, it is read each time
        if (found := _remembered(memory, place, state)) is not None:
            return found
        memory.parent.mkdir(parents=True, exist_ok=True)
        # of several processes that ask at once, one reads; another file may be read meanwhile
        with FileLock(memory.with_name(f"{memory.name}.{hashlib.sha256(place.encode()).hexdigest()[:12]}.lock")):
            if (found := _remembered(memory, place, state)) is not None:
                return found
            found = _sha256(path)
            with FileLock(memory.with_name(f"{memory.name}.lock")):
                write_json(memory, (read_object(memory) or {}) | {place: [*state, found]})
            return found
    return _sha256(path)


def _remembered(memory: Path, place: str, state: list[int]) -> str | None:
    entry = (read_object(memory) or {}).get(place)
    return str(entry[3]) if isinstance(entry, list) and len(entry) == 4 and entry[:3] == state else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Where generated data goes: `$FINEPRUNER_CACHE`, or a folder in the user's cache."""
    if named := os.environ.get("FINEPRUNER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finepruner_lmms"


def expand_home(path: str) -> str:
    """`path` with a leading `~` or `~user` as the home directory; unchanged where there is none, as in a hub id."""
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib's raises for a user that does not exist
