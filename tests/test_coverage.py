"""Intervals hold the truth as often as they say, on simulated studies; `benchmarks/coverage.py` prints the whole table.

The seeds are fixed, so that nothing here happens by chance; the bounds allow for the noise of so few repeats.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finepruner_lmms.statistics.scores import average, relative

_FILE = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
_SPEC = importlib.util.spec_from_file_location("finepruner_coverage", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
simulated = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(simulated)

REPEATS = 200


@functools.cache
def coverage(name: str) -> dict[int, Any]:
    """By the number of images."""
    case = next(case for case in simulated.CASES if case.name == name)
    return {images: simulated.coverage(case, images, REPEATS, seed=5) for images in simulated.IMAGES}


def noise(repeats: int) -> float:
    """Two standard errors of a coverage, in percent."""
    return 200 * (0.95 * 0.05 / repeats) ** 0.5


@pytest.mark.parametrize("case", simulated.CASES, ids=[case.name for case in simulated.CASES])
def test_95_percent_intervals_hold_the_truth_in_95_percent_of_studies(case):
    found = coverage(case.name)
    for images, one in found.items():
        assert one.ours >= case.least - noise(REPEATS), images
        if images >= case.sharp:  # elsewhere they are wider, on purpose
            assert one.ours <= 97 + noise(REPEATS), images
    together = sum(one.ours for one in found.values()) / len(found)
    assert together >= case.least - noise(REPEATS * len(found))


def test_the_same_simulations_find_the_faults_of_plain_standard_errors():
    """What the bounds above are worth."""
    assert coverage("accuracy, 1 per image, 93 - 90 %")[16].plain < 60
    assert coverage("accuracy, 1 per image, 99 %")[60].plain < 60
    assert coverage("MME, nearly alike, 93 - 92 %")[16].plain < 80
    assert coverage("accuracy, 4 per image, 97 %")[16].plain < 90


def test_an_average_is_a_share_and_its_interval_leaves_no_room_beyond():
    almost = np.ones((20, 1), dtype=bool)
    almost[0] = False
    found = average({"one": [simulated.accuracy(almost)], "other": [simulated.accuracy(np.ones((20, 1), dtype=bool))]})
    assert found.value == 97.5 and found.low < 90 and 97.5 < found.high <= 100


def test_a_row_that_equals_vanilla_may_differ_by_what_was_not_seen():
    tasks = {"one": [simulated.accuracy(np.arange(50).reshape(50, 1) % 5 > 0)]}
    found = relative(tasks, tasks)
    assert (found.value, found.error) == (100, None)
    floor = 2**0.5 * 100 * (100 / 50) / 80  # two answers of 50, of a score of 80 %
    assert found.high - 100 == pytest.approx(100 - found.low) == pytest.approx(2.0096 * floor, rel=1e-3)


def test_holm_keeps_false_alarms_of_a_whole_study_below_5_percent():
    found = simulated.false_alarms(60, rows=15, studies=100, seed=5)
    assert found.holm <= 5 and found.single <= 5
    assert found.uncorrected > 10
