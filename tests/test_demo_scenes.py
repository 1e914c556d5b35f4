"""The demo world: what is drawn, asked and kept apart."""

from __future__ import annotations

import random

import numpy as np
import pytest

from finepruner_lmms.demo.questions import KINDS, ask, count_of, existence
from finepruner_lmms.demo.scenes import CELL, SPLITS, digit_samples, make_scene, photograph_paths


def test_scenes_are_the_same_wherever_they_are_drawn():
    first = [make_scene("test", i).pixels() for i in range(3)]
    again = [make_scene("test", i).pixels() for i in (2, 1, 0)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (336, 336, 3) and first[0].dtype == np.uint8


def test_the_splits_share_no_photograph_no_digit_and_no_scene():
    photographs = [set(photograph_paths(split)) for split in SPLITS]
    digits = [{sample.tobytes() for samples in digit_samples(split).values() for sample in samples} for split in SPLITS]
    scenes = [{make_scene(split, i).pixels().tobytes() for i in range(20)} for split in SPLITS]
    for kind in (photographs, digits, scenes):
        assert all(kind) and not (kind[0] & kind[1] or kind[0] & kind[2] or kind[1] & kind[2])
    assert all(path.is_file() for paths in photographs for path in paths)


def test_an_object_fills_its_four_visual_tokens():
    scene = make_scene("test", 5)
    assert scene.object_tokens().sum() == 4 * len(scene.things)
    thing = scene.shapes[0]
    rows, columns = np.divmod(np.array(thing.tokens()), 24)
    assert set(rows) == {2 * thing.y, 2 * thing.y + 1} and set(columns) == {2 * thing.x, 2 * thing.x + 1}


def test_a_square_has_its_colour():
    dominant, seen = {"red": 0, "green": 1, "blue": 2}, 0
    for scene in (make_scene("test", i) for i in range(30)):
        for thing in scene.shapes:
            if thing.color in dominant and thing.name == "square":
                x, y = thing.x * CELL, thing.y * CELL
                assert scene.pixels()[y + 8 : y + 20, x + 8 : x + 20].mean((0, 1)).argmax() == dominant[thing.color]
                seen += 1
    assert seen > 5


def test_objects_are_few_among_the_tokens():
    shares = [make_scene("train", i).object_tokens().mean() for i in range(50)]
    assert 0.03 < np.mean(shares) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_questions_have_the_answer_that_the_scene_shows(kind):
    rng, asked = random.Random(0), 0
    for index in range(60):
        scene = make_scene("tuning", index)
        question = ask(scene, kind, rng)
        if question is None:
            continue
        asked += 1
        assert all(thing in scene.things for thing in question.subject)
        if question.options:
            assert question.options.count(question.answer) == 1 and len(set(question.options)) == len(question.options)
            assert question.expected == question.letter
        if kind == "count":
            assert int(question.answer) == len(question.subject)
        if kind == "color":
            assert question.answer == question.subject[0].color and count_of(scene, question.subject[0].name) == 1
        if kind == "digit":
            assert question.answer == question.subject[0].name and question.subject[0].color in question.text
    assert asked > 20


def test_what_does_not_exist_is_sampled_as_pope_does():
    rng = random.Random(0)
    for index in range(40):
        scene = make_scene("tuning", index)
        pairs = {(thing.name, thing.color) for thing in scene.shapes}
        for how in ("adversarial", "popular", "random"):
            question = existence(scene, rng, "no", how)
            if question is None:
                continue
            color, name = question.text.removeprefix("Is there a ").removesuffix(" in the image?").split()
            assert (name, color) not in pairs
            here = name in {s for s, _ in pairs}, color in {c for _, c in pairs}
            assert {"adversarial": all(here), "popular": any(here), "random": True}[how]


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="split: got 'dev'"):
        make_scene("dev", 0)
    with pytest.raises(ValueError, match="kind: got 'smell'"):
        ask(make_scene("test", 0), "smell", random.Random(0))
