"""How far a run is, and how long the rest takes: lines of a log, and bars of a terminal."""

from __future__ import annotations

import io

import pytest
from studies import cell, method

from finepruner_lmms import output
from finepruner_lmms.matrix.forecast import Forecast, show_duration
from finepruner_lmms.matrix.progress import BarDisplay, PlainDisplay

ROWS = [method("vanilla"), method("fastv", 64), method("fastv", 32)]
CELLS = [cell(f"{task}{number}", task, number, row) for task in ("pope", "mme") for number, row in enumerate(ROWS)]
POPE = [one for one in CELLS if one.task == "pope"]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def log(clock: Clock, cells=CELLS, seconds=None, kind=PlainDisplay) -> tuple[PlainDisplay, io.StringIO]:
    file = io.StringIO()
    display = kind(output.console(file, width=400, force_terminal=kind is BarDisplay), len(cells), 0, clock)
    display.expect(cells, seconds or {})
    return display, file


def test_a_log_says_once_a_minute_how_far_it_is():
    clock = Clock()
    display, file = log(clock)
    display.cell_started(CELLS[0].label)
    for _ in range(150):  # 75 seconds
        clock.now += 0.5
        display.cell_progress(int(clock.now - 1000), 100)
        display.tick()
    (line,) = file.getvalue().splitlines()
    assert line[9:] == "[0/6] pope · vanilla 60/100; about 9 minutes left"  # 60 s for 0.6 of six cells
    clock.now += 60
    display.tick()
    assert len(file.getvalue().splitlines()) == 2


def test_time_left_counts_cells_by_what_they_are_expected_to_take():
    clock = Clock()
    seconds = {one.id: 100.0 if one.task == "pope" else 1000.0 for one in CELLS}
    forecast = Forecast(CELLS, seconds, clock)
    forecast.began(CELLS[0].label)
    assert forecast.left() is None
    for one in POPE:
        clock.now += 200  # twice as long as expected
        forecast.ended(one.label, done=True)
    assert forecast.left() == pytest.approx(2 * 3000)
    forecast.progress(CELLS[3].label, 0.5)
    clock.now += 1000
    assert forecast.left() == pytest.approx(1600 / 800 * 2500)
    forecast.ended(CELLS[3].label, done=False)  # a failure took time, and is no work that was done
    assert forecast.left() == pytest.approx(1600 / 300 * 2000)


def test_cells_that_are_answered_together_are_done_together():
    clock = Clock()
    forecast = Forecast(CELLS, {}, clock)
    forecast.began(CELLS[0].label)
    clock.now += 100
    forecast.progress(CELLS[0].label, 0.5, together=3)
    assert forecast.left() == pytest.approx(100 / 1.5 * 4.5)
    clock.now += 100
    forecast.ended(CELLS[0].label, done=True)
    assert forecast.left() == pytest.approx(200 / 2.0 * 4.0)  # the other two keep what they had


def test_cells_of_jobs_elsewhere_count_from_when_they_were_waited_for():
    clock = Clock()
    forecast = Forecast(CELLS, {}, clock)
    clock.now += 120
    forecast.ended(CELLS[0].label, done=True)
    assert forecast.left() == pytest.approx(600)
    forecast.ended("another study's", done=True)
    assert forecast.left() == pytest.approx(600)


def test_many_workers_are_one_line():
    clock = Clock()
    cells = [cell(f"c{number}", "pope", number, method("fastv", number + 1)) for number in range(20)]
    display, file = log(clock, cells)
    for number, one in enumerate(cells):
        display.cell_started(one.label, number)
    clock.now += 61
    display.tick()
    (line,) = file.getvalue().splitlines()
    assert line.endswith("pope · fastv 8, and 12 more") and "fastv 9" not in line


def test_bars_say_what_is_left():
    clock = Clock()
    display, file = log(clock, kind=BarDisplay)
    with display:
        display.cell_started(CELLS[0].label)
        clock.now += 100
        display.cell_progress(10, 100)
        display.tick()
    assert "about 1.6 hours left" in file.getvalue()


@pytest.mark.parametrize(
    "seconds, shown",
    [(4, "4 seconds"), (200, "3 minutes"), (9000, "2.5 hours"), (200_000, "2.3 days")],
)
def test_durations_are_short(seconds, shown):
    assert show_duration(seconds) == shown
