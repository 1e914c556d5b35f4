"""A method as it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from finepruner_lmms.pruners import Pruner


@dataclass(frozen=True)
class Method:
    """Its name in tables, and the pruner."""

    label: str
    pruner: Pruner
