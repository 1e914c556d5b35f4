"""Processes that end with their parent, however that ends. Only the standard library is needed.

python tether.py PARENT COMMAND ...     a command whose process the kernel kills when its parent ends, also where it
                                        is stopped or stuck in native code
python tether.py --guard VARIABLE=VALUE waits until its standard input is closed, as by the end of who started it;
                                        then kills all processes with this variable in their environment, or with
                                        one of a folder below: those of launchers too, in sessions of their own
"""

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends; at once if that is no longer `parent`. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(1)


def marked(mark: str) -> list[int]:
    """The processes of this machine with `mark`, a `VARIABLE=folder`, or one of a folder below it."""
    wanted = os.fsencode(mark)
    names = os.listdir("/proc") if os.path.isdir("/proc") else []  # noqa: PTH112, PTH208 - pathlib takes a moment
    found = []
    for name in filter(str.isdecimal, names):
        if any(part == wanted or part.startswith(wanted + b"/") for part in _environment(name)):
            found.append(int(name))
    return found


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def _guard(mark: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are for who is guarded
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    for _ in range(3):  # what is being started while we look has a parent no more
        for pid in marked(mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "--guard":
        _guard(sys.argv[2])
    else:
        end_with_parent(int(sys.argv[1]))
        os.execvp(sys.argv[2], sys.argv[2:])
