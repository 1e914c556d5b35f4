"""What all processes of a launch do together: where one fails, all fail, with the reason of the one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from finepruner_lmms.errors import Failure, first_line

T = TypeVar("T")


class OtherRankFailed(Failure):
    """This process is well, another of the same launch is not; the text says which, and why."""


@contextmanager
def all_or_none(accelerator: Accelerator) -> Iterator[None]:
    """Run the block on every process of a launch, and leave it only when all have.

    Where it fails, the process raises its own error; the others raise `OtherRankFailed`, instead of waiting for it
    until a collective call times out. For blocks that every process enters and that take all about as long.
    """
    try:
        yield
    except Exception as error:
        _tell(accelerator, first_line(error))
        raise
    if failed := _tell(accelerator, ""):
        raise OtherRankFailed("; ".join(failed))


def every_rank(accelerator: Accelerator, value: T) -> list[T]:
    """What each process has, in the order of ranks; all must call it."""
    return [value] if accelerator.num_processes == 1 else list(gather_object([value]))


def _tell(accelerator: Accelerator, reason: str) -> list[str]:
    """Say how this process fares, and hear of the others that failed."""
    return [f"rank {rank}: {told}" for rank, told in enumerate(every_rank(accelerator, reason)) if told]
