"""Intervals, differences, seeds and p-values of answers summed by image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.statistics.differences import average_difference, difference, difference_of_seeds
from finepruner_lmms.statistics.effects import combine, effect
from finepruner_lmms.statistics.families import benjamini_hochberg, holm
from finepruner_lmms.statistics.power import detectable, equivalence
from finepruner_lmms.statistics.scores import average, estimate, over_seeds, relative, relative_of_means
from finepruner_lmms.statistics.tally import Tally


def tally(right, name: str = "gqa", start: int = 0) -> Tally:
    """Of right and wrong answers `[images, each]`."""
    right = np.asarray(right, dtype=float)
    each = right.shape[1]
    samples = [
        {"doc_id": start + number, "target": "a", "exact_match": float(score)}
        for number, score in enumerate(right.reshape(-1))
    ]
    return BENCHMARKS[name].tally(samples, {s["doc_id"]: f"i{(s['doc_id'] - start) // each:05d}" for s in samples})


def random_answers(seed: int, images: int = 40, each: int = 3, share: float = 0.7):
    return np.random.default_rng(seed).random((images, each)) < share


def test_the_error_of_a_mean_is_that_of_its_images_means():
    right = random_answers(1)
    found = estimate(tally(right))
    means = 100 * right.mean(1)
    assert found.value == pytest.approx(means.mean()) and (found.questions, found.images) == (120, 40)
    assert found.error == pytest.approx(means.std(ddof=1) / 40**0.5)


def test_a_score_has_wilsons_interval_with_effective_questions():
    right = random_answers(2)
    found = estimate(tally(right))
    p, quantile = right.mean(), stats.t.ppf(0.975, 39)
    effective = p * (1 - p) / (found.error / 100) ** 2 * (1.959964 / quantile) ** 2
    wider = 1.959964**2 / effective
    centre = (p + wider / 2) / (1 + wider)
    half = 1.959964 * math.sqrt(p * (1 - p) / effective + wider / (4 * effective)) / (1 + wider)
    assert (found.low, found.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)), rel=1e-5)


@pytest.mark.parametrize("images", [1, 16, 30])
def test_at_the_boundary_the_interval_is_wilsons_of_as_many_images(images):
    found = estimate(tally(np.ones((images, 2))))
    expected = stats.binomtest(images, images).proportion_ci(method="wilson")
    assert found.error is None and found.value == 100
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100), abs=1e-6)
    none = estimate(tally(np.zeros((images, 2))))
    assert (none.low, none.high) == pytest.approx((0, 100 * (1 - expected.low)), abs=1e-6)
    if images == 30:
        assert found.low == pytest.approx(88.6, abs=0.1)  # what "100.0" on 30 questions means


def test_a_difference_is_paired_over_images_with_students_t_and_a_floor():
    one, other = random_answers(3), random_answers(4)
    found = difference(tally(one), tally(other))
    paired = 100 * (one.mean(1) - other.mean(1))
    seen = paired.std(ddof=1) / 40**0.5
    error = math.sqrt(seen**2 + 2 * (100 / 120) ** 2)
    half = stats.t.ppf(0.975, 39) * error
    assert (found.value, found.error) == pytest.approx((paired.mean(), error))
    assert (found.low, found.high) == pytest.approx((paired.mean() - half, paired.mean() + half))
    assert (found.won, found.lost) == ((one & ~other).sum(), (~one & other).sum())


def test_rows_alike_still_have_an_interval_and_no_small_p():
    found = difference(tally(random_answers(5)), tally(random_answers(5)))
    assert (found.value, found.p, found.won, found.lost) == (0, 1.0, 0, 0)
    assert found.low == -found.high and found.high == pytest.approx(stats.t.ppf(0.975, 39) * 2**0.5 * 100 / 120)


def test_nothing_is_said_of_one_image():
    found = difference(tally([[1, 0, 1]]), tally([[0, 0, 1]]))
    assert (found.error, found.low, found.high, found.p) == (None, None, None, None)
    assert found.value == pytest.approx(100 / 3)


def test_with_one_question_per_image_p_is_mcnemars_exact():
    one = np.array([[1]] * 9 + [[0]] * 2 + [[1]] * 20)
    other = np.array([[0]] * 9 + [[1]] * 2 + [[1]] * 20)
    assert difference(tally(one), tally(other)).p == pytest.approx(stats.binomtest(9, 11).pvalue)


def test_p_counts_all_exchanges_of_images():
    one, other = random_answers(6, images=9, each=2, share=0.8), random_answers(7, images=9, each=2, share=0.4)
    steps = (one.sum(1) - other.sum(1)).astype(float)
    sums = [abs(float(np.dot(signs, steps))) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean([value >= abs(steps.sum()) - 1e-9 for value in sums])
    assert difference(tally(one), tally(other)).p == pytest.approx(expected)


def test_drawn_p_values_are_near_the_exact_ones():
    rng = np.random.default_rng(8)
    one, other = rng.random((400, 1)), rng.random((400, 1)) + 0.03  # all images differ otherwise
    found = difference(tally(one), tally(np.clip(other, 0, 1)))
    paired = one[:, 0] - np.clip(other[:, 0], 0, 1)
    assert found.p == pytest.approx(stats.ttest_1samp(paired, 0).pvalue, abs=0.02)
    assert found.p == difference(tally(one), tally(np.clip(other, 0, 1))).p  # the same draws again


def pope(said: list[str], true: list[str], each: int = 3) -> Tally:
    samples = [
        {
            "doc_id": n,
            "target": t,
            "pope_f1_mean": {"prediction": s, "ground_truth": t, "category": "abc"[n % 3], "score": float(s == t)},
        }
        for n, (s, t) in enumerate(zip(said, true, strict=True))
    ]
    return BENCHMARKS["pope"].tally(samples, [f"i{n // each}" for n in range(len(samples))])


def test_f1_and_points_are_jackknifed_by_leaving_images_out():
    rng = np.random.default_rng(9)
    true = [str(word) for word in rng.choice(["yes", "no"], 60)]
    said = [t if rng.random() < 0.8 else "yes" for t in true]
    found = estimate(pope(said, true))
    left = []
    for image in range(20):
        kept = [n for n in range(60) if n // 3 != image]
        samples = [
            {"prediction": said[n], "ground_truth": true[n], "category": "abc"[n % 3], "score": 0.0} for n in kept
        ]
        rows, _ = BENCHMARKS["pope"].rows([{"doc_id": i, "pope_f1_mean": s} for i, s in enumerate(samples)])
        left.append(100 * float(BENCHMARKS["pope"].points(rows.sum(0))))
    expected = math.sqrt(19 / 20 * np.square(np.array(left) - np.mean(left)).sum())
    assert found.error == pytest.approx(expected)


def test_one_images_answers_to_two_tasks_are_not_independent():
    right = random_answers(10, images=60, each=1)
    one = {"mmbench": [mmbench(right, "mmbench")], "mmbench_cn": [mmbench(right, "mmbench_cn")]}
    same = average(one)
    assert same.error == pytest.approx(estimate(one["mmbench"][0]).error)  # and not smaller by the root of two
    assert same.images == 60
    apart = average({"gqa": [tally(right)], "sqa": [tally(right, "sqa")]})
    assert apart.error == pytest.approx(estimate(tally(right)).error / 2**0.5) and apart.images == 120


def mmbench(right, name: str) -> Tally:
    samples = []
    for number, hit in enumerate(np.asarray(right).reshape(-1)):
        entry = {"index": number, "question": "q", "answer": "A", "category": "c", "A": "cat", "B": "dog"}
        entry |= {"C": None, "D": None, "prediction": "A" if hit else "B"}
        samples.append({"doc_id": number, "target": "A", "gpt_eval_score": entry})
    return BENCHMARKS[name].tally(samples, [str(n) for n in range(len(samples))])


def test_a_task_at_its_boundary_widens_an_average():
    right = random_answers(11)
    whole = average({"gqa": [tally(right)], "sqa": [tally(np.ones((40, 3)), "sqa")]})
    alone = estimate(tally(right)).error / 2
    assert whole.error is not None and alone < whole.error < 2 * alone


def test_relative_scores_have_an_error_by_the_delta_method():
    one, whole = tally(random_answers(12)), tally(random_answers(13, share=0.8))
    ratio = one.value / whole.value
    found = relative({"gqa": [one]}, {"gqa": [whole]})
    a, b = (100 * right.mean(1) for right in (random_answers(12), random_answers(13, share=0.8)))
    expected = 100 / b.mean() * (a - ratio * b).std(ddof=1) / 40**0.5
    assert found.value == pytest.approx(100 * ratio) and found.error == pytest.approx(expected)
    other = relative_of_means({"gqa": [one]}, {"gqa": [whole]})
    assert (other.value, other.error) == pytest.approx((found.value, found.error))
    assert relative({"gqa": [whole]}, {"gqa": [whole]}).error is None  # it is 100 by definition


def test_seeds_count_in_the_error_with_images_and_with_their_spread():
    seeds = [tally(random_answers(seed)) for seed in range(20, 24)]
    found = over_seeds(seeds)
    mean = np.mean([random_answers(seed) for seed in range(20, 24)], axis=0).mean(1) * 100
    spread = np.std([one.value for one in seeds], ddof=1)
    assert found.error == pytest.approx(math.sqrt(mean.var(ddof=1) / 40 + spread**2 / 4))
    paired = difference_of_seeds(seeds, [seeds[0]])
    assert paired.error > 0 and 0 < paired.p <= 1


def test_averages_of_differences_add_their_floors():
    one = {"gqa": [tally(random_answers(30))], "sqa": [tally(random_answers(31), "sqa")]}
    found = average_difference(one, one)
    assert found.value == 0 and found.error == pytest.approx(math.sqrt(2 * 2 * (100 / 120 / 2) ** 2))


def test_rows_that_were_asked_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="different questions"):
        difference(tally(random_answers(1)), tally(random_answers(1), start=7))


def test_influences_add_up():
    one, other = effect(tally(random_answers(40))), effect(tally(random_answers(41)))
    assert combine([(1, one), (-1, one)]).error is None
    both = combine([(0.5, one), (0.5, other)])
    assert both.value == pytest.approx((one.value + other.value) / 2)
    assert sum(one.influences["gqa"].values) == pytest.approx(0, abs=1e-9)


def test_p_values_are_adjusted_for_their_family():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx(list(stats.false_discovery_control(p)))
    assert holm([]) == [] and holm([0.2]) == [0.2]


def test_the_smallest_difference_is_the_fields_formula():
    assert detectable(8910, 0.05) == pytest.approx(0.66, abs=0.005)
    assert detectable(2114, 0.05, k=2.1) == pytest.approx(2.86, abs=0.01)
    assert detectable(1000, 0.05, deff=4) == pytest.approx(2 * detectable(1000, 0.05))


def test_a_margin_is_shown_not_shown_or_beyond_the_study():
    found = difference(tally(random_answers(3)), tally(random_answers(4)))
    assert equivalence(found, -found.low + 0.01) == "shown"
    assert equivalence(found, -found.low - 0.01) == "too small to say"
    assert equivalence(found, -found.high - 0.01) == "not shown"
