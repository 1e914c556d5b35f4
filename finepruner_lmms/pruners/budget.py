"""Budgets under their public name; they live in `finepruner_lmms.budget`, where reports find them without methods."""

from __future__ import annotations

from finepruner_lmms.budget import *  # noqa: F403 - the whole of it
from finepruner_lmms.budget import __all__ as __all__
