"""What can go wrong with data, as one kind of error whose text names the place and the fix."""

from __future__ import annotations

from finepruner_lmms.errors import Failure


class DataError(Failure, ValueError):
    """Data that is missing, incomplete or not what it should be."""
