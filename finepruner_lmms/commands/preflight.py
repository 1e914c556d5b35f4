"""What would end a command late is looked at before it begins: where it writes, on what it runs, what it serves."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import try_to_write

if TYPE_CHECKING:
    from finepruner_lmms.matrix.sections import MatrixFile

ROOM = 64 << 20
"""Bytes that must be free where a run writes: logs and answers of a few thousand questions."""
_PROBLEMS = {
    errno.EEXIST: ("is a file", "give a folder"),
    errno.ENOTDIR: ("stands below a file", "give a folder"),
    errno.EACCES: ("cannot be written to", "give a folder that may be"),
    errno.EPERM: ("cannot be written to", "give a folder that may be"),
    errno.EROFS: ("is on a file system that is read only", "give another folder"),
    errno.ENAMETOOLONG: ("has a name that is too long", "give a shorter one"),
    errno.ENOSPC: ("is on a full disk", "make room, or give another folder"),
    errno.EDQUOT: ("is over the quota there", "make room, or give another folder"),
    errno.ELOOP: ("is a circle of links", "give another folder"),
}


def check_folder(field: str, folder: Path, room: int = 0) -> None:
    """Make a folder, write and rename a file in it and remove that; `FieldError` where it cannot, or lacks `room`."""
    _check_name(field, folder)
    try:
        try_to_write(folder)
        disk = shutil.disk_usage(folder)
    except OSError as error:
        raise _wrong(field, folder, error) from error
    if disk.total and disk.free < room:  # some file systems do not say how large they are
        problem = f"{str(folder)!r} has {disk.free >> 20} MiB left, and a run needs {room >> 20}"
        raise FieldError(field, problem, value=folder, fix="make room, or give another folder")


def check_file(field: str, file: Path) -> None:
    """`FieldError` unless a file can be written there; its folder is made."""
    _check_name(field, file)
    try:
        there = file.exists()
        if there and not file.is_file():
            kind = "a folder" if file.is_dir() else "no regular file"
            raise FieldError(field, f"{str(file)!r} is {kind}", value=file, fix="give the name of a file")
        if there and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _wrong(field, file, error) from error
    check_folder(field, file.parent)


def check_address(host: str, port: int | None) -> None:
    """`FieldError` where nothing can be served at `host`, or the port is taken: said before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise FieldError("--host", f"got {host!r} ({error.strerror})", value=host, fix="such as 127.0.0.1") from error
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just given up is free
        try:
            tried.bind(address)
        except OSError as error:
            field, value = ("--port", port) if error.errno in (errno.EADDRINUSE, errno.EACCES) else ("--host", host)
            problem = f"cannot serve at {host}{'' if port is None else f':{port}'} ({error.strerror})"
            raise FieldError(field, problem, value=value, fix="choose another, or leave it out") from error


def check_machine(file: MatrixFile) -> None:
    """`FieldError` if the matrix asks this machine for GPUs that it does not show."""
    if file.launch.executor != "local":
        return  # the jobs' machines are others
    from finepruner_lmms.matrix.gpus import count_gpus

    gpus, device, processes = count_gpus(), file.model.device, file.launch.processes
    shown = f"this machine shows {gpus or 'no'} GPU{'s' * (gpus != 1)}"
    kind, _, number = device.partition(":")
    if kind == "cuda" and (not gpus or (number.isdecimal() and int(number) >= gpus)):
        raise FieldError("model.device", f"got {device!r}; {shown}", value=device, fix="leave it out, or see `doctor`")
    shared = file.launch.mode == "packed"  # where several workers may have a GPU between them
    if gpus and device in ("auto", "cuda") and processes != "auto" and processes > gpus and not shared:
        raise FieldError("launch.processes", f"got {processes}; {shown}", value=processes, fix="write auto, or fewer")


def _check_name(field: str, path: Path) -> None:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:  # it could not be written down in any of our files
        raise FieldError(field, f"the name {str(path)!r} is not UTF-8", value=path, fix="give another name") from None
    if "\0" in str(path):
        raise FieldError(field, f"the name {str(path)!r} holds a null byte", value=path, fix="give another name")


def _wrong(field: str, path: Path, error: OSError) -> FieldError:
    problem, fix = _PROBLEMS.get(error.errno or 0, (f"cannot be written to ({error.strerror or error})", ""))
    shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"
    return FieldError(field, f"{shown!r} {problem}", value=path, fix=fix)
