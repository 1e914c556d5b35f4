"""The benchmarks' scores from logged samples: equal to lmms-eval's own, and right where they can be counted by hand."""

from __future__ import annotations

import math
import resource
import time

import datasets
import numpy as np
import pytest
from PIL import Image

from finepruner_lmms.benchmarks import BENCHMARKS, image_names


def pope(*answers: tuple[str, str]) -> list[dict]:
    return [
        {
            "doc_id": i,
            "pope_f1_mean": {
                "prediction": said,
                "ground_truth": true,
                "category": "random",
                "score": float(said == true),
            },
        }
        for i, (said, true) in enumerate(answers)
    ]


def mme(*pairs: tuple[str, int, int]) -> list[dict]:
    """`(category, first right, second right)` an image."""
    samples = []
    for number, (category, *right) in enumerate(pairs):
        for hit in right:
            entry = {"category": category, "question_id": f"{category}/{number}", "score": float(hit)}
            samples.append({"doc_id": len(samples), "mme_perception_score": entry})
    return samples


def mmbench(*questions: str) -> list[dict]:
    """What was said to each order of a question whose right answers are A, B, C, D in turn."""
    samples = []
    for index, said in enumerate(questions):
        for turn, letter in enumerate(said):
            entry = {
                "index": index + turn * 1_000_000,
                "question": "q",
                "answer": "ABCD"[turn],
                "prediction": letter,
                "category": "c",
                "split": "dev",
                **dict(zip("ABCD", ("red", "green", "blue", "white"), strict=True)),
            }
            samples.append({"doc_id": len(samples), "gpt_eval_score": entry})
    return samples


def test_pope_is_the_f1_of_yes():
    score = BENCHMARKS["pope"]
    samples = pope(("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))
    assert math.isclose(score.value(samples), 2 / 3)  # precision 2/3, recall 2/3
    assert score.value(pope(("no", "yes"), ("no", "no"))) == 0
    assert score.value(pope(("yes", "yes"), ("no", "no"))) == 1
    assert score.value(pope(("maybe", "yes"), ("yes", "yes"))) == pytest.approx(1.0)  # as lmms-eval counts it: no "no"


def test_pope_is_the_mean_over_kinds_of_negatives():
    score = BENCHMARKS["pope"]
    samples = pope(("yes", "yes"), ("yes", "no"), ("no", "no"), ("yes", "yes"))
    for sample, kind in zip(samples, ("popular", "popular", "random", "random"), strict=True):
        sample["pope_f1_mean"]["category"] = kind
    assert math.isclose(score.value(samples), (2 / 3 + 1) / 2)
    assert score.standard_error(samples, list("abcd")) > 0  # also where a kind is left out with its last image


def test_mme_counts_both_questions_and_pairs():
    score = BENCHMARKS["mme"]
    samples = mme(("color", 1, 1), ("color", 1, 0), ("count", 0, 0))
    # colour: 75 + 50; count: 0 + 0; out of 200 each
    assert score.value(samples) == 125 and math.isclose(score.percent(samples), 31.25)
    assert score.percent(mme(("color", 1, 1), ("OCR", 1, 1))) == 100
    odd = mme(("color", 1, 1), ("OCR", 0, 0))[:-1]
    assert score.value(odd) == 200 and score.percent(odd) == 100  # one of the second pair was not asked


def test_mmbench_is_circular():
    score = BENCHMARKS["mmbench"]
    assert score.value(mmbench("ABCD", "ABCA")) == 50  # one order wrong: the whole question is
    assert score.value(mmbench("ABCD")) == 100 and score.value(mmbench("DCBA")) == 0


def test_the_error_of_a_mean_is_the_known_one():
    score, rng = BENCHMARKS["gqa"], np.random.default_rng(0)
    hits = rng.random(400) < 0.8
    samples = [{"doc_id": i, "exact_match": float(hit)} for i, hit in enumerate(hits)]
    expected = 100 * math.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
    assert score.standard_error(samples, [str(i) for i in range(400)]) == pytest.approx(expected, rel=0.002)
    # questions about one image stand and fall together: four times as many of them say no more
    grouped = [{"doc_id": i, "exact_match": float(hits[i // 4])} for i in range(1600)]
    images = [str(i // 4) for i in range(1600)]
    assert score.standard_error(grouped, images) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_an_error_that_no_image_changes_is_not_measured(hit):
    samples = [{"doc_id": i, "exact_match": hit} for i in range(20)]
    assert BENCHMARKS["gqa"].standard_error(samples, list(range(20))) is None  # 0 % or 100 %
    assert BENCHMARKS["mme"].standard_error(mme(*[("color", 1, 1)] * 5), list(range(10))) is None


def test_one_image_has_no_measured_error():
    samples = [{"doc_id": i, "exact_match": float(i % 2)} for i in range(20)]
    assert BENCHMARKS["gqa"].standard_error(samples, ["the same"] * 20) is None
    assert BENCHMARKS["gqa"].standard_error(samples, ["one"] * 19 + ["other"]) > 0


def test_questions_share_an_image_by_name_or_by_content(tmp_path):
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    documents = datasets.Dataset.from_dict({"image": [red, blue, red], "name": ["a", "b", "c"]})
    documents = documents.cast_column("image", datasets.Image())
    first, second, third = image_names(documents, "image")
    assert first == third != second
    assert image_names(documents, "name") == ["a", "b", "c"]
    blue.save(tmp_path / "blue.png")
    stored = datasets.Dataset.from_dict({"image": [str(tmp_path / "blue.png")]}).cast_column("image", datasets.Image())
    assert image_names(stored, "image") == [second]


def test_no_samples_are_an_error():
    with pytest.raises(ValueError, match="pope: no samples"):
        BENCHMARKS["pope"].value([])


def test_the_ten_names_are_those_of_the_contract():
    names = "vqav2 gqa vizwiz sqa textvqa pope mme mmbench mmbench_cn mmvet"
    assert " ".join(BENCHMARKS) == names


N = 100_000
PARTS = {
    "gqa": lambda i, hit: {"exact_match": float(hit)},
    "pope": lambda i, hit: {
        "pope_f1_mean": {
            "prediction": ("no", "yes")[hit],
            "ground_truth": ("yes", "no")[i % 2],
            "category": "abc"[i % 3],
            "score": float(hit),
        }
    },
    "mme": lambda i, hit: {
        "mme_perception_score": {"score": float(hit), "question_id": str(i // 2), "category": str(i // 2 % 10)}
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_100_000_questions_are_scored_in_seconds_and_little_memory(name):
    hits = np.random.default_rng(0).random(N) < 0.7
    samples = [{"doc_id": i, **PARTS[name](i, bool(hit))} for i, hit in enumerate(hits)]
    images = [str(i) for i in range(N)]  # the most that there can be
    memory, started = peak_memory(), time.process_time()
    assert BENCHMARKS[name].percent(samples) > 0
    middle = time.process_time()
    assert BENCHMARKS[name].standard_error(samples, images) > 0
    assert middle - started < 5 and time.process_time() - middle < 5  # seconds of this process
    assert peak_memory() - memory < 5e8


def peak_memory() -> float:
    """Bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
