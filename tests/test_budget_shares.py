"""Budgets as papers write them for images of any size: so many of so many."""

from __future__ import annotations

from fractions import Fraction

import pytest

import finepruner_lmms as fp
from finepruner_lmms.budget import keeps_all, parse_budget, plain_budget


def test_so_many_of_so_many_is_that_share_of_each_image():
    assert parse_budget("640/2880").tokens(2880) == 640
    assert parse_budget(" 640 / 2880 ").tokens(1152) == 256
    assert parse_budget("1/3").tokens(576) == 192
    assert plain_budget(" 0640 / 2880") == "640/2880"


@pytest.mark.parametrize("given", ["0/2880", "3000/2880", "640/0", "1/2/3", "/2", "-1/2", "1.5/3"])
def test_what_is_no_part_is_refused(given):
    with pytest.raises(ValueError, match=r"budget.*such as 128, or a share of them, such as '22%' or '640/2880'"):
        fp.build_pruner("fastv", budget=given)


def test_schedules_follow_the_share():
    pruner = fp.build_pruner("fastv", budget="640/2880")
    assert sum(pruner.schedule(32, 2880)) / 32 == pytest.approx(640, abs=0.5)
    assert sum(pruner.schedule(32, 1152)) / 32 == pytest.approx(256, abs=0.5)


def test_an_image_that_is_no_larger_than_its_budget_stays_whole():
    assert keeps_all(128, 128) and keeps_all(128, 100) and not keeps_all(128, 129)
    assert keeps_all("100%", 7) and not keeps_all("99%", 7) and keeps_all(None, 7)
    assert not keeps_all(Fraction(1, 2), 1)
