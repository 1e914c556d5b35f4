"""MME under a limit: lmms-eval asserts that both questions about an image were asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from lmms_eval.tasks.mme.utils import mme_aggregate_results
from loguru import logger


def aggregate(entries: Sequence[dict[str, Any]]) -> float:
    """lmms-eval's points of the whole pairs; what has no partner is left out, with a warning."""
    paired = whole_pairs(entries)
    if len(paired) < len(entries):
        logger.warning(f"MME: {len(entries) - len(paired)} questions have no partner and are left out of the score")
    if not paired:
        raise ValueError(f"limit: none of {len(entries)} questions has its partner; give a limit of at least 2")
    return float(mme_aggregate_results(paired))


def whole_pairs(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries about images with two."""
    counts = Counter(pair_of(entry) for entry in entries)
    return [entry for entry in entries if counts[pair_of(entry)] == 2]


def pair_of(entry: dict[str, Any]) -> Hashable:
    """What the two questions of a pair share."""
    return entry["category"], entry["question_id"]
