"""The scores of answers written by hand, through the very functions that the task files name.

What a set of answers is worth is counted by hand in the comments; where lmms-eval scores ordinary answers the same way,
its own function is the reference.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator
from lmms_eval.tasks.mmbench.en_utils import mmbench_process_results as upstream_mmbench
from lmms_eval.tasks.mme.utils import mme_aggregate_results
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score, pope_process_results
from lmms_eval.tasks.scienceqa.utils import sqa_process_results
from lmms_eval.utils import load_yaml_config

from finepruner_lmms.benchmarks import BENCHMARKS, pope, sqa
from finepruner_lmms.data import task_folders as tasks

_YAML = {
    name: load_yaml_config(yaml_path=str(tasks.overrides_dir() / f"fp_{name}.yaml")) for name in tasks.available_tasks()
}


def score(name: str, answers: list[tuple[dict, str]]) -> dict[str, float]:
    """Every metric of the task for `(document, answer)` pairs, and the leaderboard's own recomputation, `""`."""
    config = _YAML[name]
    scored = [config["process_results"](copy.deepcopy(doc), [said]) for doc, said in answers]
    found = {}
    for entry in config["metric_list"]:
        values = [one[entry["metric"]] for one in scored if entry["metric"] in one]
        if values:
            aggregate = np.mean if entry["aggregation"] == "mean" else entry["aggregation"]
            found[entry["metric"]] = float(aggregate(values))
    samples = [{"doc_id": i, **one} for i, one in enumerate(scored)]
    found[""] = BENCHMARKS[name].value(samples)
    assert found[""] == pytest.approx(found[BENCHMARKS[name].metric.partition(",")[0]])
    return found


# -- short answers ----------------------------------------------------------------------------------------------------

HUMANS = ["red"] * 2 + ["dark red"] * 3 + ["unanswerable"] + ["blue"] * 4


def vqa(answers: list[str], **more) -> dict:
    """VQAv2 holds its annotators' answers as dictionaries."""
    held = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]
    return {"question_id": 1, "image_id": 7, "answers": held, **more}


# n of ten annotators agree: leave each out in turn, min(those left / 3, 1), and take the mean
@pytest.mark.parametrize(
    "said, worth",
    [
        ("blue", 1.0),  # 4 agree: 3 or 4 are left
        ("dark red", (3 * 2 / 3 + 7) / 10),  # 3 agree
        ("red", (2 * 1 / 3 + 8 * 2 / 3) / 10),  # 2
        ("Unanswerable", 9 * 1 / 3 / 10),  # 1, whatever its case
        ("Blue.", 1.0),
        ("the blue", 1.0),  # articles do not count
        ("green", 0.0),
        ("", 0.0),
    ],
)
@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz"])
def test_short_answers_count_as_far_as_annotators_agree(name, said, worth):
    doc = vqa(HUMANS) if name == "vqav2" else {"question_id": "1", "image_id": "7", "answers": HUMANS}
    assert score(name, [(doc, said)])["exact_match"] == pytest.approx(worth)


def test_vizwiz_wants_to_hear_that_a_question_cannot_be_answered():
    blind = {"question_id": "a.jpg", "answers": ["unanswerable"] * 9 + ["cat"]}
    seen = {"question_id": "b.jpg", "answers": ["cat"] * 8 + ["unanswerable", "dog"]}
    answers = [(blind, "Unanswerable"), (blind, "dog"), (seen, "a cat"), (seen, "unanswerable")]
    assert score("vizwiz", answers)["exact_match"] == pytest.approx((1 + 0 + 1 + 0.3) / 4)


def test_gqa_wants_the_very_word():
    doc = {"imageId": "n1", "answer": "dog"}
    found = score("gqa", [(doc, "Dog."), (doc, "dog"), (doc, "dogs"), (doc, "dog!")])
    assert found["exact_match"] == found["exact_match_by_image"] == 2 / 4


# -- yes and no -------------------------------------------------------------------------------------------------------


def asked(answer: str, category: str = "random") -> dict:
    return {"question_id": "1", "answer": answer, "category": category}


@pytest.mark.parametrize(
    "said, read",
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("Yes, there is a dog.", "yes"),
        ("no", "no"),
        ("No.", "no"),
        ("No, there is not.", "no"),
        ("There is not a dog", "no"),
        ("Yes. There is no dog", "yes"),  # the first sentence counts
        ("There is nothing", "yes"),  # a word, not a part of one
        ("", "yes"),
        ("NO", "yes"),  # as there
        ("Not at all", "yes"),
        ("No\nYes", "yes"),  # between spaces only
    ],
)
def test_pope_reads_answers_as_llava_does(said, read):
    assert pope.read(said) == read


def test_pope_is_the_mean_of_three_f1():
    answers = [
        (asked("yes", "adversarial"), "Yes"),
        (asked("no", "adversarial"), "Yes"),  # precision 1/2, recall 1: 2/3
        (asked("yes", "popular"), "Yes."),
        (asked("no", "popular"), "No, there is not."),  # 1
        (asked("yes", "random"), "No."),
        (asked("yes", "random"), "yes"),
        (asked("no", "random"), "not at all"),  # precision 1, recall 1/2: 2/3
    ]
    found = score("pope", answers)
    assert found["pope_f1_mean"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["pope_f1_score"] == pytest.approx(3 / 4)  # 3 hits, 1 wrong, 1 missed
    assert found["pope_accuracy"] == pytest.approx(5 / 7)
    assert found["pope_precision"] == found["pope_recall"] == pytest.approx(3 / 4)
    assert found["pope_yes_ratio"] == pytest.approx(4 / 7)  # of what was said; 4 of 7 right answers are yes, too
    assert score("pope", [(asked("yes"), "no"), (asked("no"), "no")])["pope_yes_ratio"] == 0


def test_pope_scores_plain_answers_as_lmms_eval_does():
    answers = [(asked(true), said) for true in ("yes", "no") for said in ("Yes", "no", "yes")]
    theirs = [pope_process_results(doc, [said])["pope_f1_score"] for doc, said in answers]
    assert score("pope", answers)["pope_f1_score"] == pope_aggregate_f1_score(theirs)


def test_pope_refuses_a_question_without_an_answer():
    with pytest.raises(ValueError, match="answer: got 'maybe' in question '1'"):
        pope.process_results(asked("maybe"), ["yes"])


def pair(number: int, category: str = "color") -> list[dict]:
    about = {"question_id": f"{category}/{number}.png", "category": category}
    return [about | {"answer": "Yes"}, about | {"answer": "No"}]


def test_mme_is_accuracy_and_accuracy_of_pairs():
    # colour: 3 of 4 right, 1 of 2 pairs: 75 + 50; count: all right: 100 + 100
    answers = [*zip(pair(1) + pair(2), ["Yes", "No", "yes.", "Yes"], strict=True)]
    answers += zip(pair(1, "count"), ["Yes", "No, there are not."], strict=True)
    assert score("mme", answers)["mme_perception_score"] == 325
    cognition = [*zip(pair(1, "code_reasoning"), ["yes", "yes"], strict=True)]
    assert score("mme", answers + cognition)["mme_cognition_score"] == 50
    both = score("mme", answers + cognition)
    assert (both["mme_perception_score"], both["mme_total_score"]) == (325, 375)


def test_mme_counts_whole_pairs_only():
    answers = [*zip(pair(1), ["Yes", "No"], strict=True), (pair(2)[0], "No")]
    assert score("mme", answers)["mme_perception_score"] == 200
    whole = [_YAML["mme"]["process_results"](doc, [said])["mme_perception_score"] for doc, said in answers[:2]]
    assert mme_aggregate_results(whole) == 200
    with pytest.raises(ValueError, match="limit: none of 1 questions has its partner"):
        score("mme", answers[2:])


# -- options ----------------------------------------------------------------------------------------------------------


def rotations(index: int, options: tuple[str, ...], right: str) -> list[dict]:
    """One question in every order of its options, as the files of MMBench hold it."""
    rows = []
    for turn in range(len(options)):
        turned = options[turn:] + options[:turn]
        letters = dict(zip("ABCD", (*turned, "nan", None)[:4], strict=False))
        answer = "ABCD"[turned.index(right)]
        about = {"question": "which one?", "hint": "nan", "category": "c", "L2-category": "l", "source": "s"}
        rows.append({"index": index + turn * 1_000_000, "answer": answer, "split": "dev", **about, **letters})
    return rows


@pytest.mark.parametrize("name", ["mmbench", "mmbench_cn"])
def test_mmbench_counts_a_question_that_is_right_in_every_order(name):
    first = rotations(1, ("red", "green", "blue", "white"), "blue")
    second = rotations(2, ("红色", "绿色", "蓝色", "白色"), "蓝色")
    two = rotations(3, ("yes", "no"), "no")
    right = [(row, row["answer"]) for row in first + second + two]
    assert score(name, right)["gpt_eval_score"] == 100
    missed = [*right]
    missed[2] = (first[2], "D")  # three of four orders
    assert score(name, missed)["gpt_eval_score"] == pytest.approx(200 / 3)
    missed[-1] = (two[1], "")
    assert score(name, missed)["gpt_eval_score"] == pytest.approx(100 / 3)
    rng = np.random.default_rng(0)
    assert score(name, [missed[i] for i in rng.permutation(len(missed))])["gpt_eval_score"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("said", ["{}", "{}.", "{}. {option}", "({})", "{option}", "The answer is {}."])
def test_mmbench_reads_letters_and_options(said):
    rows = rotations(1, ("a dog", "two cats", "a bird", "no animal"), "two cats")
    answers = [(row, said.format(row["answer"], option=row[row["answer"]])) for row in rows]
    assert score("mmbench", answers)["gpt_eval_score"] == 100
    theirs = [upstream_mmbench(row, [answer])["gpt_eval_score"] for row, answer in answers]
    assert mmbench_evaluator.eval_result(theirs, eval_method="static")[0] == 1


def test_a_missing_option_of_mmbench_is_not_found_in_an_answer():
    rows = rotations(1, ("a banana", "a pear"), "a banana")
    answers = [(row, "it is a banana") for row in rows]
    assert score("mmbench", answers)["gpt_eval_score"] == 100
    theirs = [upstream_mmbench(row, [answer])["gpt_eval_score"] for row, answer in answers]
    assert mmbench_evaluator.eval_result(theirs, eval_method="static")[0] == 0  # "nan" is in "banana"


@pytest.mark.parametrize(
    "said, read",
    [
        ("B", "B"),
        ("B.", "B"),
        ("B. brick", "B"),
        (" B \n", "B"),
        ("The answer is B.", "B"),
        ("Look. The answer is B", "B"),
        ("The answer is B. No: The answer is A.", None),
        ("D", None),  # there are three
        ("Brick", None),
        ("brick", None),
        ("", None),
    ],
)
def test_scienceqa_reads_what_llava_reads(said, read):
    assert sqa.read(said, 3) == read


def test_scienceqa_is_the_share_of_right_letters():
    doc = {"choices": ["wood", "brick", "glass"], "answer": 1}
    answers = ["B", "B.", "B. brick", "The answer is B.", "A", "A.", "brick", ""]
    assert score("sqa", [(doc, said) for said in answers])["exact_match"] == 4 / 8
    for said in ("B", "B.", "B. brick", "A", "A. wood", "brick"):  # what lmms-eval reads, it reads alike
        assert sqa.process_results(doc, [said])["exact_match"] == sqa_process_results(doc, [said])["exact_match"]
    assert score("sqa", [(doc, said) for said in answers])["exact_match_llava"] == 3 / 8  # not "B."


# -- prompts ----------------------------------------------------------------------------------------------------------

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
BLIND = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
OPTIONS = {"A": "yes", "B": "no", "C": "nan", "D": None}
ZH = {"A": "是", "B": "不是", "C": float("nan"), "D": "nan"}


# the form of each was read in LLaVA's question files, or in the script that builds it (docs/benchmarks.md)
@pytest.mark.parametrize(
    "name, doc, prompt",
    [
        ("vqav2", {"question": "Is it Tuesday?"}, f"Is it Tuesday?{WORD}"),
        ("gqa", {"question": "Is it overcast?"}, f"Is it overcast?{WORD}"),
        ("pope", {"question": "Is there a dog in the imange?"}, f"Is there a dog in the imange?{WORD}"),
        ("mme", {"question": "Is this a dog? Please answer yes or no."}, f"Is this a dog?{WORD}"),
        ("vizwiz", {"question": "Do I need a CD? Ok. "}, f"Do i need a cd? ok. {BLIND}{WORD}"),
        (
            "textvqa",
            {"question": "what brand is it?", "ocr_tokens": ["DAKOTA", "35mm"]},
            f"What brand is it?\nReference OCR token: DAKOTA, 35mm{WORD}",
        ),
        ("textvqa", {"question": "what?", "ocr_tokens": []}, f"What?\nReference OCR token: {WORD}"),
        ("sqa", {"question": "Which?", "choices": ["a", "b"], "hint": ""}, f"Which?\nA. a\nB. b{LETTER}"),
        (
            "sqa",
            {"question": "Which?", "choices": list("vwxyz"), "hint": "Look.\nWell."},
            f"Context: Look.\nWell.\nWhich?\nA. v\nB. w\nC. x\nD. y\nE. z{LETTER}",
        ),
        ("mmbench", {"question": "Is it?", "hint": "nan"} | OPTIONS, f"Is it?\nA. yes\nB. no{LETTER}"),
        ("mmbench", {"question": "Is it?", "hint": "Look."} | OPTIONS, f"Look.\nIs it?\nA. yes\nB. no{LETTER}"),
        ("mmbench_cn", {"question": "是吗？", "hint": None} | ZH, "是吗？\nA. 是\nB. 不是\n请直接回答选项字母。"),
    ],
)
def test_a_prompt_is_that_of_llava(name, doc, prompt):
    config = _YAML[name]
    assert config["doc_to_text"](doc, config["lmms_eval_specific_kwargs"]["default"]) == prompt


def test_answers_may_be_as_long_as_in_llava():
    lengths = {name: config["generation_kwargs"]["max_new_tokens"] for name, config in _YAML.items()}
    short = {name: lengths[name] for name in ("vqav2", "gqa", "vizwiz", "textvqa", "pope", "mme")}
    assert set(short.values()) == {128} and lengths["sqa"] == lengths["mmbench"] == lengths["mmbench_cn"] == 1024
    assert all(c["generation_kwargs"]["temperature"] == 0 for c in _YAML.values())
