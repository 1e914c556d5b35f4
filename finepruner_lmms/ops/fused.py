"""Where the greedy loops run as kernels of their own (`ops.one_kernel`) instead of as many operations of torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Any

from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_plain = False
MOST = 4096  # tokens: a row is held in the registers of one program


def kernels_for(values: Tensor) -> Any:
    """`ops.one_kernel` if it can run on `values` `[B, N, N]`: on an NVIDIA GPU, where Triton is there; else None."""
    if _plain or not values.is_cuda or values.shape[-1] > MOST or values.requires_grad:
        return None
    return _kernels()


@cache
def _kernels() -> Any:
    if torch.version.cuda is None or find_spec("triton") is None:
        return None
    try:
        kernels = import_module("finepruner_lmms.ops.one_kernel")
        kernels.greedy_map(torch.eye(2, dtype=torch.float64, device="cuda")[None], 1)
    # such as a missing C compiler, or a Triton that does not know the GPU
    except (ImportError, OSError, RuntimeError, SubprocessError) as problem:
        warnings.warn(
            f"Triton does not work here, so greedy choices take many small operations: {problem}", stacklevel=2
        )
        return None
    return kernels


@contextmanager
def plain_loops() -> Iterator[None]:
    """Inside, the loops run in plain torch everywhere: to compare the two."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before
