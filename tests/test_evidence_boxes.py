"""Where the evidence of a question lies, how much of it is kept, and the boxes in the miniatures' data."""

from __future__ import annotations

import random

import numpy as np
import pytest

from finepruner_lmms.demo import benchmarks
from finepruner_lmms.demo.questions import ask
from finepruner_lmms.demo.scenes import COLORS, make_scene
from finepruner_lmms.matrix.boxes import Box, share, weights


def test_a_box_weighs_on_the_tokens_that_it_covers_and_on_no_others():
    found = weights([Box(0.25, 0.5, 0.5, 1.0)], (4, 4)).reshape(4, 4)
    assert found[2:, 1].tolist() == [1.0, 1.0] and found.sum() == 2.0


def test_a_box_over_half_of_a_token_weighs_half_and_overlapping_boxes_count_once():
    half = weights([Box(0.0, 0.0, 0.25, 0.125)], (4, 4))
    assert half[0] == pytest.approx(0.5) and half[1:].sum() == 0
    assert weights([Box(0, 0, 0.5, 1), Box(0, 0, 0.5, 1)], (2, 2)).tolist() == [1, 0, 1, 0]


def test_the_share_of_evidence_is_what_kept_tokens_show_of_it():
    of = weights([Box(0, 0, 1, 0.5)], (2, 2))
    assert share(of, np.array([True, False, True, True])) == 0.5
    assert share(of, np.array([False, False, True, True])) == 0.0
    assert share(np.zeros(4), np.ones(4, dtype=bool)) is None


def test_the_box_of_a_thing_covers_its_four_visual_tokens():
    thing = make_scene("test", 5).shapes[0]
    left, top, right, bottom = (side / 336 for side in thing.box())
    assert np.flatnonzero(weights([Box(left, top, right, bottom)], (24, 24))).tolist() == thing.tokens()


def test_a_question_about_what_is_not_there_has_no_evidence():
    scene, rng = make_scene("test", 3), random.Random(0)
    assert ask(scene, "exist", rng, "no").evidence == []
    assert len(ask(scene, "exist", rng, "yes").evidence) == 1


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, list]:
    """A few rows of every miniature."""
    few = dict.fromkeys(benchmarks.SIZES, 12)  # a multiple of what each image is asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "SIZES", few)
        return {name: next(iter(make("test", 0).values())) for name, make in benchmarks._MAKERS.items()}


@pytest.mark.parametrize("name", benchmarks.SIZES)
def test_every_miniature_says_where_its_evidence_is(tables, name):
    boxes = [row["evidence"] for row in tables[name]]
    assert any(boxes) and all(0 <= side <= 336 for found in boxes for box in found for side in box)


def test_the_evidence_of_a_digit_is_the_box_that_the_question_names(tables):
    for row in tables["textvqa"]:
        ((left, top, right, bottom),) = row["evidence"]
        color = next(name for name in COLORS if f" {name} " in row["question"])
        frame = row["image"].pixels()[top : top + 3, left:right].reshape(-1, 3).mean(0)
        assert np.abs(frame - COLORS[color]).max() < 40
        assert (right - left, bottom - top) == (28, 28)
