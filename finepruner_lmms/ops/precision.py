"""The numeric setting in which tokens are scored and chosen, whatever the model around it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from finepruner_lmms.lazy import torch


@contextmanager
def for_choosing(device: torch.device) -> Iterator[None]:
    """No gradients, and no autocast: under `torch.autocast`, products of float32 scores would be bfloat16."""
    with torch.no_grad():
        if torch.amp.is_autocast_available(device.type):
            with torch.autocast(device.type, enabled=False):
                yield
        else:
            yield
