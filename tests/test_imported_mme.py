"""Recorded MME runs: totals and intervals of imported rows are those of plain Python that shares no code with ours."""

from __future__ import annotations

import json
import random

import foreign_runs as foreign
import pytest
from scipy import stats
from typer.testing import CliRunner

from finepruner_lmms.cli import app

CATEGORIES = {"OCR": 20, "existence": 30, "color": 13}  # images of each
TRUTH = {f"{category}/{n}.png": category for category, count in CATEGORIES.items() for n in range(count)}
QUESTIONS = [(image, answer) for image in TRUTH for answer in ("Yes", "No")]


def answers(seed: int, rate: float) -> list[str]:
    rng = random.Random(seed)
    other = {"Yes": "No", "No": "Yes"}
    return [answer if rng.random() < rate else other[answer] for _, answer in QUESTIONS]


FIRST, SECOND = answers(1, 0.85), answers(2, 0.7)


def points(said: list[str], left_out: str | None = None) -> float:
    """Accuracy of the questions plus accuracy of the pairs, in percent, summed over categories."""
    total = 0.0
    for category in CATEGORIES:
        images = [image for image, of in TRUTH.items() if of == category and image != left_out]
        right = dict.fromkeys(images, 0)
        for (image, answer), given in zip(QUESTIONS, said, strict=True):
            if image in right:
                right[image] += given == answer
        accuracy = sum(right.values()) / (2 * len(images))
        total += 100 * accuracy + 100 * sum(hits == 2 for hits in right.values()) / len(images)
    return total


def jackknife(statistic) -> float:
    """The standard error where images are left out one by one."""
    without = [statistic(image) for image in TRUTH]
    mean = sum(without) / len(without)
    return ((len(without) - 1) / len(without) * sum((one - mean) ** 2 for one in without)) ** 0.5


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    root = tmp_path_factory.mktemp("mme")
    for label, said in (("first", FIRST), ("second", SECOND)):
        lines = [
            foreign.mme(number, image, answer, given, TRUTH[image])
            for number, ((image, answer), given) in enumerate(zip(QUESTIONS, said, strict=True))
        ]
        foreign.write(root / label, {"mme": lines})
        done = CliRunner().invoke(app, ["import", str(root / "out"), str(root / label), "--label", label])
        assert done.exit_code == 0, done.output
    return root / "out"


def test_totals_are_those_of_the_original_and_of_lmms_eval(output):
    from lmms_eval.tasks.mme.utils import mme_aggregate_results

    table = CliRunner().invoke(app, ["table", str(output), "--format", "csv"]).stdout.splitlines()
    column = table[0].split(",").index("mme")
    shown = {line.split(",")[0]: float(line.split(",")[column]) for line in table[1:]}
    for label, said in (("first", FIRST), ("second", SECOND)):
        entries = [
            {"question_id": image, "category": TRUTH[image], "score": float(given == answer)}
            for (image, answer), given in zip(QUESTIONS, said, strict=True)
        ]
        assert shown[label] == pytest.approx(points(said), rel=1e-12)
        assert shown[label] == pytest.approx(mme_aggregate_results(entries), rel=1e-12)


def test_the_paired_interval_is_that_of_an_independent_computation(output):
    done = CliRunner().invoke(app, ["compare", str(output), "first", "second", "--format", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["tasks"]["mme"]
    value = points(FIRST) - points(SECOND)
    error = jackknife(lambda image: points(FIRST, image) - points(SECOND, image))
    full = 200 * len(CATEGORIES)
    floor = full / 100 * 100 / len(QUESTIONS) / 2  # half of what a question is of the maximum
    error = (error**2 + 2 * floor**2) ** 0.5
    half = stats.t.ppf(0.975, len(TRUTH) - 1) * error
    assert found["difference"] == pytest.approx(value, rel=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((value - half, value + half), rel=1e-9)
    assert (found["questions"], found["images"]) == (len(QUESTIONS), len(TRUTH))
    right = [[given == answer for (_, answer), given in zip(QUESTIONS, said, strict=True)] for said in (FIRST, SECOND)]
    won = sum(one and not other for one, other in zip(*right, strict=True))
    lost = sum(other and not one for one, other in zip(*right, strict=True))
    assert (found["won"], found["lost"]) == (won, lost)


def test_p_is_how_often_exchanged_answers_differ_as_much(output):
    """Against 20,000 draws of our own: images swap their answers between the rows."""
    found = json.loads(CliRunner().invoke(app, ["compare", str(output), "first", "second", "--format", "json"]).stdout)
    right = [[given == answer for (_, answer), given in zip(QUESTIONS, said, strict=True)] for said in (FIRST, SECOND)]
    worth = []  # what each image adds to the difference
    for number, (image, category) in enumerate(TRUTH.items()):
        hits = [sum(row[2 * number : 2 * number + 2]) for row in right]
        gains = [(50 * hit + 100 * (hit == 2)) / CATEGORIES[category] for hit in hits]
        assert image == QUESTIONS[2 * number][0]
        worth.append(gains[0] - gains[1])
    rng, observed = random.Random(3), abs(sum(worth))
    draws = 20_000
    far = sum(abs(sum(one if rng.random() < 0.5 else -one for one in worth)) >= observed - 1e-9 for _ in range(draws))
    p = found["tasks"]["mme"]["p"]
    assert p == pytest.approx(far / draws, abs=0.001 + 4 * (p / draws) ** 0.5)
