"""A batch a few rows at a time, where what is computed of a row is large."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_CPU, _ELSEWHERE = 2**19, 2**25
"""Numbers at a time: on a CPU as many as its caches hold several of; elsewhere only memory is a limit."""


def row_slices(values: Tensor) -> list[slice]:
    """Slices of the rows of `values` `[B, ...]`, in order: as many rows in each as are worth computing together.

    A row's result must not depend on which rows are computed with it.
    """
    numbers = values[0].numel() if len(values) else 1
    rows = max((_CPU if values.device.type == "cpu" else _ELSEWHERE) // max(numbers, 1), 1)
    return [slice(first, first + rows) for first in range(0, max(len(values), 1), rows)]
