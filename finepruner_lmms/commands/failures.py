"""From a failure to one line and an exit status: the one place that does it, for every command."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperGroup

from finepruner_lmms.commands.stopping import stoppable
from finepruner_lmms.errors import Failure, first_line
from finepruner_lmms.output import one_line

STOPPED = 130
"""As shells say it of Ctrl-C; SIGTERM and SIGHUP end a run in the same way."""
UNREAD = 141
"""As shells say it of a program whose reader went away (`| head`)."""
# of the machine, not of what was asked: the disk is full, or breaks
_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG)
_GO_ON = {
    "run": "what is done is kept; the same command goes on from here",
    "work": "what is done is kept; the same command goes on from here",
    "judge": "what is judged is kept; the same command goes on from here",
    "prepare": "what is fetched is kept; the same command goes on from here",
}
_FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota there",
    errno.EMFILE: "raise `ulimit -n`",
    errno.EFBIG: "raise `ulimit -f`",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EROFS: "give a place that can be written to",
}


class Commands(TyperGroup):
    """Commands whose expected failures are one line each; a fault of ours keeps its traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run the command line; with `standalone_mode`, end the process with the documented status."""
        more["standalone_mode"] = False
        if not standalone_mode:
            return super().main(args, *rest, **more)
        try:
            status = super().main(args, *rest, **more)
            sys.stdout.flush()
        except Exception as error:
            if (status := _of_typer(error)) is None and (status := report(error)) is None:
                raise
        except KeyboardInterrupt:
            status = stopped()
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what it raises becomes a line and a status."""
        try:
            with stoppable():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(stopped(ctx.invoked_subcommand)) from None
        except Exception as error:
            if _was_stopped(error):
                raise typer.Exit(stopped(ctx.invoked_subcommand)) from None
            if (status := report(error, ctx.invoked_subcommand)) is None:
                raise
            raise typer.Exit(status) from None


def _was_stopped(error: Exception) -> bool:
    """Whether it came of cleaning up: a closed terminal stops us, and then fails for everything that is shown on it."""
    before: BaseException | None = error
    while isinstance(before, OSError):
        before = before.__context__
    return isinstance(before, KeyboardInterrupt)


def report(error: Exception, command: str | None = None) -> int | None:
    """Say what failed, in one line on standard error; returns the exit status, or None where it was not expected."""
    if isinstance(error, BrokenPipeError):
        return unread(command)
    if isinstance(error, Failure):
        *lines, last = error.lines()
        goes_on = error.exit_status == 1 and error.kept and command in _GO_ON
        more = [_GO_ON[command]] if command and goes_on else []
        for line in [*lines, "; ".join([last, *more])]:
            _say(line)
        return error.exit_status
    if not isinstance(error, OSError):
        return None
    named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    text = f"{named}{error.strerror or first_line(error)}"
    parts = [text, _FIXES.get(error.errno or 0, "")]
    if error.errno not in _FAULTS:
        _say("; ".join(filter(None, parts)))
        return 2
    _say("; ".join(filter(None, [*parts, _GO_ON.get(command or "", "")])))
    return 1


def stopped(command: str | None = None) -> int:
    """Say that somebody stopped us, and how to go on."""
    _say("; ".join(filter(None, ["stopped", _GO_ON.get(command or "", "")])))
    return STOPPED


def unread(command: str | None = None) -> int:
    """Nobody reads our output any more. Where that cost something, say how to go on."""
    with suppress(OSError):  # what is buffered would fail again at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if command in _GO_ON:
        _say(f"nobody reads the output any more; {_GO_ON[command]}")
    return UNREAD


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody may be there to read it, or the stream be closed
        sys.stderr.write(f"{one_line(line)}\n")
        sys.stderr.flush()


def _of_typer(error: Exception) -> int | None:
    """A mistake in options and arguments, whose classes typer has from click or carries itself."""
    if not hasattr(error, "format_message"):
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return 2
    context = getattr(error, "ctx", None)
    help_ = f"; `{context.command_path} --help` says more" if context is not None else ""
    _say(f"{error.format_message().rstrip('.')}{help_}")
    return int(getattr(error, "exit_code", 2))
