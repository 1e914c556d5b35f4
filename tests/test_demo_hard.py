"""The demanding world: crowded scenes, near misses, splits that share nothing, and evidence for what is asked."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from finepruner_lmms.demo.hard import benchmarks, drawing
from finepruner_lmms.demo.hard.choices import KINDS, ask
from finepruner_lmms.demo.hard.clear import fitting, number_of
from finepruner_lmms.demo.hard.questions import NEGATIVES, PLURAL, existence
from finepruner_lmms.demo.hard.scenes import Scene, make_scene, make_view
from finepruner_lmms.demo.hard.things import COLORS, SIDES, SIZES
from finepruner_lmms.demo.hard.vocabulary import build_processor
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.root import MINIATURES, content_identity
from finepruner_lmms.demo.scenes import SPLITS, digit_samples

SCENES = [make_scene("tuning", index) for index in range(40)]


def test_a_scene_is_crowded_with_things_of_every_size_that_do_not_touch():
    sizes = Counter(thing.size for scene in SCENES for thing in scene.shapes)
    assert min(sizes.values()) > 0.15 * sum(sizes.values()) and set(sizes) == set(SIZES)
    for scene in SCENES:
        assert 15 <= len(scene.things) <= 30
        assert 2 <= len(scene.plates) <= 4 and len({plate.color for plate in scene.plates}) == len(scene.plates)
        tokens = [token for thing in scene.things for token in thing.tokens()]
        assert len(tokens) == len(set(tokens)) == scene.object_tokens().sum()
    assert np.median([scene.object_tokens().sum() for scene in SCENES]) > 64


def test_what_stands_beside_a_plate_touches_it_and_nothing_else_does():
    for scene in SCENES:
        for pair in scene.pairs:
            (dx, dy), plate, thing = SIDES[pair.side], pair.plate, pair.thing
            rim = set()
            for x in range(plate.x - 1, plate.x + plate.width + 1):
                rim |= {(x, y) for y in range(plate.y - 1, plate.y + plate.height + 1)}
            near = [one for one in scene.shapes if (one.x, one.y) in rim and one.size == "small"]
            assert near == [thing]
            beyond = {(1, 0): thing.x - plate.width, (-1, 0): thing.x + 1}.get((dx, dy), plate.x)
            assert beyond == plate.x and (dy == 0 or thing.y == plate.y + dy)


def test_scenes_are_the_same_wherever_they_are_drawn():
    first = [make_scene("test", i).pixels() for i in range(3)]
    again = [make_scene("test", i).pixels() for i in (2, 1, 0)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (336, 336, 3) and first[0].dtype == np.uint8


def test_a_view_is_a_small_picture_of_the_same_world():
    view = make_view("train", 4, 6)
    assert view.pixels().shape == (84, 84, 3) and view.things
    assert all(thing.x + thing.width <= 6 and thing.y + thing.height <= 6 for thing in view.things)
    with pytest.raises(ValueError, match="grid: got 5; expected 6 to 24"):
        make_view("train", 0, 5)
    with pytest.raises(ValueError, match="split: got 'dev'"):
        make_scene("dev", 0)


def test_a_thing_looks_as_it_is_called_and_the_rest_is_photograph():
    for scene in SCENES[:10]:
        pixels = scene.pixels().astype(float)
        for thing in scene.shapes:
            left, top, right, bottom = thing.box()
            if thing.name == "square":
                x, y = (left + right) // 2, (top + bottom) // 2
                middle = pixels[y - 2 : y + 2, x - 2 : x + 2].mean((0, 1))
                nearest = min(COLORS, key=lambda name: np.abs(middle - COLORS[name]).sum())
                assert nearest == thing.color
        for plate in scene.plates:
            left, top, right, bottom = plate.box()
            frame = pixels[top : top + 2, left:right].mean((0, 1))
            assert min(COLORS, key=lambda name: np.abs(frame - COLORS[name]).sum()) == plate.color
            assert pixels[top:bottom, left:right].max() > 200  # light digits


def test_training_has_each_handwritten_digit_in_many_forms_and_the_other_splits_have_them_as_they_were_written():
    for split, forms in {"train": 1 + drawing.FORMS, "tuning": 1, "test": 1}.items():
        masks, samples = drawing.digit_masks(split), digit_samples(split)
        assert {digit: len(some) for digit, some in masks.items()} == {
            digit: forms * len(some) for digit, some in samples.items()
        }
        assert all(mask.min() >= 0 and mask.max() <= 1 for some in masks.values() for mask in some)
    # of one sample: no form like another, and nearer to each other than what others wrote
    forms = np.stack(drawing.digit_masks("train")[4][: 1 + drawing.FORMS]).reshape(1 + drawing.FORMS, -1)
    apart = np.linalg.norm(forms[:, None] - forms, axis=-1)
    others = np.stack(drawing.digit_masks("tuning")[4]).reshape(-1, forms.shape[1])
    between = np.linalg.norm(others[:, None] - others, axis=-1)
    assert apart[~np.eye(len(forms), dtype=bool)].min() > 0.1
    assert np.median(apart) < np.median(between)


def test_a_black_or_white_thing_is_not_lost_in_the_photograph():
    for scene in SCENES[:20]:
        bare = replace(scene, things=(), scraps=()).pixels().astype(float)
        for thing in scene.shapes:
            left, top, right, bottom = thing.box()
            ground = np.median(bare[top:bottom, left:right])
            assert thing.color not in ("black", "white") or np.abs(ground - COLORS[thing.color]).min() > 25


def test_sharp_edges_do_not_tell_the_things_from_the_photograph():
    """Backgrounds were softened once, and the 96 patches with the sharpest edges held 0.9 of the things."""
    found = []
    for scene in (make_scene(split, index) for split in SPLITS for index in range(20)):
        tiles = scene.pixels().astype(float).reshape(24, 14, 24, 14, 3).transpose(0, 2, 1, 3, 4).reshape(576, 14, 14, 3)
        steps = [np.abs(np.diff(tiles, axis=axis)).max(-1).reshape(576, -1) for axis in (1, 2)]
        edges = np.sort(np.concatenate(steps, axis=1), axis=1)[:, -40:].mean(1)
        first = np.argsort(-edges, kind="stable")[:96]
        found.append(scene.object_tokens()[first].sum() / scene.object_tokens().sum())
    assert 0.4 < np.mean(found) < 0.8


def told(scene: Scene, text: str) -> str:
    """The answer by another way than the maker's: from the words of the question alone."""
    words = text.rstrip("?").split()
    size = next((word for word in words if word in SIZES), "")
    color = next((word for word in words if word in COLORS), "")
    name = next((shape for shape in SHAPES if shape in words or PLURAL[shape] in words), "")
    plates = [pair for pair in scene.pairs if pair.plate.color == color]
    if text.startswith("How many"):
        return str(sum(t.size in (size or t.size) and t.color == (color or t.color) and t.name == (name or t.name)
                       for t in scene.shapes))  # fmt: skip
    if text.startswith("Is there"):
        return "yes" if any((t.size, t.color, t.name) == (size, color, name) for t in scene.shapes) else "no"
    if "plate" in words:
        (pair,) = plates
        number = next((word for word in words if word.isdecimal()), "")
        side = next((side for side in SIDES if side in words), "")
        if text.startswith("Is the object"):
            return "yes" if pair.side == side else "no"
        if text.startswith("Is the number"):
            return "yes" if pair.plate.name == number else "no"
        asked = {"number": pair.plate.name, "color": pair.thing.color, "shape": pair.thing.name}
        return pair.side if "side" in words else next(asked[word] for word in words if word in asked)
    if text.startswith("Are there more"):
        first, second = text.split(" more ")[1].split(" in the image")[0].split(" than ")

        def number_like(words):
            return len([t for t in scene.shapes if words in (f"{t.color} objects", PLURAL[t.name])])

        return "yes" if number_like(first) > number_like(second) else "no"
    if text.startswith("Is the number of"):
        return "yes" if len(fitting(scene, color=color, size=size)) == int(words[-1]) else "no"
    if "largest" in words or "smallest" in words:
        order = sorted(fitting(scene, name=name), key=lambda t: SIZES[t.size], reverse="smallest" not in words)
        return order["second" in words].color
    if text.startswith("What shape"):
        (thing,) = fitting(scene, size=size, color=color)
        return thing.name
    found = fitting(scene, size=size, name=name)
    if text.startswith("What color"):
        return found[0].color if found else "unanswerable"
    (thing,) = found
    return thing.color if " or " in text else "yes" if thing.color == words[-1] else "no"


ENGLISH = [kind for kind in KINDS if kind not in ("choice_zh", "told", "legend")]


@pytest.mark.parametrize("kind", ENGLISH)
def test_the_answer_is_what_the_scene_shows(kind):
    asked = 0
    for scene in SCENES:
        for turn in range(3):
            question = ask(scene, kind, random.Random(turn))
            if question is not None:
                asked += 1
                assert told(scene, question.text) == question.answer, question
                assert all(thing in scene.things for thing in question.subject)
    assert asked > 60


def test_the_two_answers_and_the_sides_are_asked_equally_often():
    for kind in ("exist", "written", "number", "verify", "place", "more"):
        said = Counter()
        for index in range(150):
            if question := ask(make_scene("tuning", index), kind, random.Random(index)):
                said[question.answer] += 1
        assert 0.35 < said["yes"] / said.total() < 0.65, (kind, said)


@pytest.mark.parametrize("kind", ["choice", "choice_zh", "told", "legend"])
def test_a_choice_has_four_different_options_and_its_answer_in_each_place(kind):
    places = Counter()
    for scene in SCENES:
        question = ask(scene, kind, random.Random(scene.index))
        if question is not None:
            assert len(set(question.options)) == 4 and question.options.count(question.answer) == 1
            places[question.letter] += 1
    assert set(places) == set("ABCD")


def test_a_legend_names_the_plate_whose_number_is_asked():
    for scene in SCENES:
        question = ask(scene, "legend", random.Random(scene.index))
        assert question is not None
        vehicle = question.text.rstrip("?").split()[-1]
        said = next(part for part in question.context.split(". ") if part.startswith(f"The {vehicle} "))
        (plate,) = (plate for plate in scene.plates if plate.color in said)
        assert plate.name == question.answer and question.subject == (plate,)


def test_what_is_absent_is_nearly_there_and_its_near_misses_are_the_evidence():
    for scene in SCENES:
        for how in NEGATIVES:
            question = existence(scene, random.Random(0), "no", how)
            if question is None:
                continue
            size, color, name = question.text.removeprefix("Is there a ").removesuffix(" in the image?").split()
            assert not fitting(scene, name, color, size)
            near = [(t.size == size) + (t.color == color) + (t.name == name) == 2 for t in scene.shapes]
            assert len(question.subject) <= sum(near) and bool(question.subject) == any(near)
            assert any(near) or how != "adversarial"


def test_a_wrong_number_differs_in_one_digit_and_is_one_that_a_plate_could_have():
    rng = random.Random(0)
    for number in ("10", "99", "407", "5555"):
        for _ in range(50):
            wrong = number_of(rng, number)
            assert len(wrong) == len(number) and wrong[0] != "0"
            assert sum(a != b for a, b in zip(number, wrong, strict=True)) == 1


def test_unknown_kinds_are_errors():
    with pytest.raises(ValueError, match="kind: got 'smell'"):
        ask(SCENES[0], "smell", random.Random(0))


@pytest.fixture(scope="module")
def tables() -> dict[str, list]:
    return {name: next(iter(make("test", 0).values())) for name, make in benchmarks._MAKERS.items()}


@pytest.mark.parametrize("name", MINIATURES["demo-hard"].sizes)
def test_each_miniature_asks_600_questions_about_300_scenes_and_says_where_the_evidence_is(tables, name):
    rows = tables[name]
    asked = {row["index"] % 1_000_000 for row in rows} if name.startswith("mmbench") else rows
    assert len(asked) >= 600 and len(rows) == MINIATURES["demo-hard"].sizes[name]
    scenes = {row["imageId"] if name == "gqa" else row["image"].index for row in rows}
    assert len(scenes) >= 300
    boxes = [box for row in rows for box in row["evidence"]]
    assert boxes and all(0 <= left < right <= 336 and 0 <= top < bottom <= 336 for left, top, right, bottom in boxes)


def test_most_answers_hang_on_a_small_part_of_the_picture(tables):
    for name in ("textvqa", "vizwiz", "pope", "mmbench"):
        parts = [sum((r - l) * (b - t) for l, t, r, b in row["evidence"]) / 336**2 for row in tables[name]]  # noqa: E741
        assert np.median(parts) < 16 / 576, name


def test_the_easy_and_the_demanding_miniatures_are_told_apart_and_so_are_the_splits():
    assert len({content_identity(data) for data in MINIATURES}) == len(MINIATURES) == 4


def test_the_tokenizer_knows_every_word_that_is_asked_and_writes_numbers_as_one_word(tables):
    tokenizer = build_processor().tokenizer
    for rows in tables.values():
        for row in rows[::7]:
            assert tokenizer.unk_token_id not in tokenizer(row["question"])["input_ids"], row["question"]
    for kind in KINDS:
        for scene in SCENES:
            if question := ask(scene, kind, random.Random(1)):
                assert tokenizer.unk_token_id not in tokenizer(question.prompt(ocr=True))["input_ids"]
    ids = tokenizer("407", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3 and tokenizer.decode(ids) == "407"
