"""A machine as `finepruner bench` measured it: its `bench.json`, read for what an estimate needs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from finepruner_lmms.engine.roofline import H100, Figure, Machine
from finepruner_lmms.matrix.records import Damage, Number, Record, load


class _Work(Record):
    flops: Number


class _Promise(Record):
    prefill: _Work


class _Spread(Record):
    median: Number


class _Measured(Record):
    method: str
    batch: int
    prefill: _Spread
    promise: _Promise


class _Device(Record):
    name: str
    kind: Literal["cuda", "cpu"]
    flops: Number
    bandwidth: Number


class _Bench(Record):
    device: _Device
    figures: tuple[_Measured, ...]


def measured_machine(folder: Path, kind: Literal["cuda", "cpu"]) -> Machine | None:
    """What the latest `bench-*/bench.json` in a folder says of a GPU or CPU; None without one that can be read."""
    files = sorted(folder.glob("bench-*/bench.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            found = load(_Bench, file)
        except Damage:  # of another version; the bench itself says so where it is asked
            continue
        if found is not None and found.device.kind == kind and (machine := _machine(found, str(file))) is not None:
            return machine
    return None


def _machine(found: _Bench, source: str) -> Machine | None:
    """Its limits, and the share of its operations that the unpruned prefill of the largest batch reached."""
    unpruned = [one for one in found.figures if one.method == "vanilla"]
    if not unpruned:
        return None
    largest = max(one.batch for one in unpruned)
    reached = max(one.promise.prefill.flops / one.prefill.median for one in unpruned if one.batch == largest)
    device = found.device
    return Machine(
        device.name,
        Figure(device.flops, "FLOP/s", H100.flops.means, source),
        Figure(device.bandwidth, "bytes/s", H100.bandwidth.means, source),
        Figure(min(1.0, reached / device.flops), "", H100.compute_share.means, f"vanilla, batch {largest}: {source}"),
        H100.bandwidth_share,
    )
