"""A limit: whole groups, spread over strata, the same questions whatever the order of the data."""

from __future__ import annotations

import random
from collections import Counter

import datasets
import pytest

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.limits import choose, chooser, document_number, document_numbers
from finepruner_lmms.errors import FieldError


def shuffled(rows: list[dict]) -> list[dict]:
    return random.Random(0).sample(rows, len(rows))


def chosen(name: str, rows: list[dict], limit: int) -> list[dict]:
    return [rows[place] for place in choose(rows, BENCHMARKS[name].sampling, limit)]


MMBENCH = [
    {"index": question + 1_000_000 * turn, "category": "c"}
    for question in range(50)
    for turn in range(2 + question % 3)
]
POPE = [
    {"question_id": number, "category": kind, "answer": ("yes", "no")[number % 2]}
    for kind in ("adversarial", "popular", "random")
    for number in range(100)
]
MME = [
    {"question_id": f"{category}/{number}.png", "category": category, "turn": turn}
    for category, size in (("OCR", 20), ("code", 20), ("color", 30), ("posters", 140))
    for number in range(size)
    for turn in range(2)
]


@pytest.mark.parametrize("order", [list, shuffled])
@pytest.mark.parametrize("limit", [4, 7, 30, 33])
def test_the_orders_of_an_mmbench_question_stay_together(order, limit):
    found = chosen("mmbench", order(MMBENCH), limit)
    turns = Counter(row["index"] % 1_000_000 for row in found)
    assert all(count == 2 + question % 3 for question, count in turns.items())
    assert limit - 1 <= len(found) <= limit


@pytest.mark.parametrize("order", [list, shuffled])
def test_pope_is_asked_for_every_kind_of_negatives_and_both_answers(order):
    found = chosen("pope", order(POPE), 32)
    counts = Counter((row["category"], row["answer"]) for row in found)
    assert len(found) == 32 and len(counts) == 6 and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("order", [list, shuffled])
def test_mme_is_asked_in_pairs_of_every_category(order):
    found = chosen("mme", order(MME), 33)
    assert len(found) == 32  # the last pair does not fit
    assert set(Counter(row["question_id"] for row in found).values()) == {2}
    assert Counter(row["category"] for row in found) == {"OCR": 8, "code": 8, "color": 8, "posters": 8}
    assert chosen("mme", order(MME), 2)[0]["category"] == "posters"  # of the largest category


@pytest.mark.parametrize("name, rows", [("mmbench", MMBENCH), ("pope", POPE), ("mme", MME)])
def test_the_choice_does_not_depend_on_the_order_of_the_data(name, rows):
    one, other = (chosen(name, order(rows), 40) for order in (list, shuffled))
    assert sorted(map(repr, one)) == sorted(map(repr, other))


def test_a_larger_limit_adds_to_a_smaller_one():
    few, more = ({repr(row) for row in chosen("pope", POPE, limit)} for limit in (30, 60))
    assert few < more


def test_without_a_name_questions_are_chosen_by_place_and_spread():
    found = choose([{}] * 1000, BENCHMARKS["sqa"].sampling, 100)
    assert len(found) == 100 and found == sorted(set(found)) and found != list(range(100))
    assert min(sum(low <= place < low + 250 for place in found) for low in (0, 250, 500, 750)) >= 10


def test_all_are_taken_where_the_limit_is_no_limit():
    assert choose(POPE, BENCHMARKS["pope"].sampling, 10_000) == list(range(len(POPE)))
    assert choose([], BENCHMARKS["pope"].sampling, 5) == []


def test_a_limit_below_every_group_is_refused():
    rows = [{"index": turn * 1_000_000} for turn in range(4)]
    with pytest.raises(FieldError, match=r"limit: got 3, but .* in groups of 4 and more; give at least 4"):
        choose(rows, BENCHMARKS["mmbench"].sampling, 3)


def test_the_chosen_documents_keep_their_numbers_and_no_image_is_decoded():
    broken = {"bytes": b"no picture", "path": None}
    rows = datasets.Dataset.from_list([row | {"image": broken} for row in shuffled(MMBENCH)])
    rows = rows.cast_column("image", datasets.Image())
    found = chooser(BENCHMARKS["mmbench"].sampling, 12)(rows)
    numbers = document_numbers(found)
    assert [rows.select_columns("index")[n]["index"] for n in numbers] == found.select_columns("index")["index"][:]
    assert [document_number(found, place) for place in range(len(found))] == numbers
    assert list(document_numbers(rows)) == list(range(len(rows))) and document_number(rows, 3) == 3
    assert document_number([{"a": 1}], 0) == 0
