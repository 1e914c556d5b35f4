"""Promised against realised: how much faster than unpruned a method should be, and is."""

from __future__ import annotations

from dataclasses import dataclass

from finepruner_lmms.bench.measure import Figures
from finepruner_lmms.bench.record import Record


@dataclass(frozen=True)
class Gain:
    """Speed-ups over `vanilla`: `promised` by operations or by the roofline, and `realised` by medians."""

    promised: float
    realised: float

    @property
    def share(self) -> float:
        """Of the promise, what is realised."""
        return self.realised / self.promised


def prefill_gain(record: Record, one: Figures) -> Gain:
    """From encoded images to the first token, against the ratio of exact operations."""
    whole = record.unpruned(one)
    promised = whole.promise.prefill.flops / one.promise.prefill.flops
    return Gain(promised, whole.prefill.median / one.prefill.median)


def first_gain(record: Record, one: Figures) -> Gain:
    """From pixels to the first token, against the ratio of exact operations, the vision tower's among them."""
    whole = record.unpruned(one)
    both = [figures.promise.vision.flops + figures.promise.prefill.flops for figures in (whole, one)]
    return Gain(both[0] / both[1], whole.first.median / one.first.median)


def total_gain(record: Record, one: Figures) -> Gain:
    """From pixels to the last token of the fixed length, against the ratio of roofline times."""
    whole = record.unpruned(one)
    best = [figures.promise.seconds(record.device, record.tokens) for figures in (whole, one)]
    return Gain(best[0] / best[1], whole.total.median / one.total.median)


def roofline_share(record: Record, one: Figures) -> tuple[float, float]:
    """What the device's best time is of the measured one: of the prefill, and of a decode step."""
    return (
        one.promise.prefill.seconds(record.device) / one.prefill.median,
        one.promise.step.seconds(record.device) / one.step.median,
    )
