"""What can go wrong with data, as one kind of error."""

from __future__ import annotations

from finepruner_lmms.errors import FieldError


class DataError(FieldError):
    """Data that is missing, incomplete or not what it should be; `field` is what was asked for, or the table's name."""
