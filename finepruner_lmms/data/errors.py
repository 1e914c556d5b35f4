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
