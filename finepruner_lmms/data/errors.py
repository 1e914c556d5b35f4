"""What can go wrong with data, as one kind of error."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.errors import Failure, FieldError


class DataError(FieldError):
    """Data that is missing, incomplete or not what it should be; `field` is what was asked for, or the table's name."""


class UnusableData(Failure, ValueError):
    """All that is wrong with the data of a request, one line per problem."""

    def __init__(self, problems: Sequence[DataError]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class UnfetchedFiles(DataError):
    """Several files of one request that could not be had, each with its reason; the others are kept."""

    def __init__(self, field: str, problems: Sequence[DataError], total: int) -> None:
        self.problems = tuple(problems)
        told = "; ".join(map(str, problems))
        super().__init__(field, f"{len(problems)} of {total} files could not be had: {told}")
