"""Intelligent Consensus-Diversity selection under its public name; it lives in `finepruner_lmms.heads.consensus`."""

from __future__ import annotations

from finepruner_lmms.heads.consensus import *  # noqa: F403 - the whole public room
from finepruner_lmms.heads.consensus import __all__ as __all__
