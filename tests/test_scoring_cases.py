"""Every line of docs/scoring.md, and those in which all agree: here, in the original code, in lmms-eval's own tasks."""

from __future__ import annotations

import copy
import re
import time

import pytest
import scoring_cases
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator
from lmms_eval.utils import load_yaml_config
from scoring_cases import CASES, UNREAD, Case

from finepruner_lmms.benchmarks import BENCHMARKS, mmbench
from finepruner_lmms.data import task_folders as tasks

SCORED = {name: str(tasks.overrides_dir() / f"fp_{name}.yaml") for name in scoring_cases.TITLES}


HERE = {name: load_yaml_config(yaml_path=path)["process_results"] for name, path in SCORED.items()}


def entry_of(case: Case, process) -> dict:
    """What a task function gives of an answer, which lmms-eval strips before."""
    return process(copy.deepcopy(case.doc), [case.said.strip()])


def ids(case: Case) -> str:
    return ascii(f"{case.task}: {case.right}: {case.said}")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_an_answer_counts_what_the_page_says(case):
    found = entry_of(case, HERE[case.task])
    if case.here == UNREAD:
        assert found["unreadable"] == 1 and found["score"] == 0 and found["gpt_eval_score"]["read"] is None
    else:
        assert found["score"] == pytest.approx(case.here) and not found.get("unreadable")
        if case.there is not None and case.task != "sqa":
            assert case.here == case.there


def test_what_counts_otherwise_in_the_original_code_is_told_beside():
    for case in (one for one in CASES if one.task == "sqa"):
        assert entry_of(case, HERE["sqa"])["exact_match_llava"] == case.there


# -- the original code, as it is described -----------------------------------------------------------------------------


def llava_gqa(doc, text):
    return float(text.rstrip(".").lower() == doc["answer"])


def llava_pope(doc, text):
    words = text.split(".")[0].replace(",", "").split(" ")
    return float(("no" if {"No", "not", "no"} & set(words) else "yes") == doc["answer"])


def original_mme(doc, text):
    said = text.lower()
    label = said if said in ("yes", "no") else next((word for word in ("yes", "no") if word in said[:4]), "other")
    return float(label == doc["answer"].lower())


def llava_sqa(doc, text):
    if text in list("ABCDE"):
        letter = text
    elif len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        letter = text[0]
    else:
        found = re.findall("The answer is ([A-Z]).", text)
        letter = found[0] if len(found) == 1 else "FAILED"
    return float(letter == "ABCDE"[doc["answer"]])


def leave_one_out(said, given):
    shares = [min(1, sum(other == said for j, other in enumerate(given) if j != i) / 3) for i in range(len(given))]
    return sum(shares) / len(shares)


def vqa_server(doc, text):
    pythia = EvalAIAnswerProcessor()
    clean = lambda answer: pythia.process_digit_article(pythia.process_punctuation(answer))  # noqa: E731
    said, given = pythia(text), [one["answer"] for one in doc["answers"]]
    if len(set(given)) > 1:
        said, given = clean(said), [clean(one) for one in given]
    return leave_one_out(said, given)


def vizwiz_api(doc, text):
    pythia = EvalAIAnswerProcessor()
    return leave_one_out(pythia.process_digit_article(pythia.process_punctuation(pythia(text))), doc["answers"])


THERE = {
    "gqa": llava_gqa, "pope": llava_pope, "mme": original_mme, "sqa": llava_sqa, "vqav2": vqa_server,
    "vizwiz": vizwiz_api,
}  # fmt: skip


@pytest.mark.parametrize("case", [one for one in CASES if one.task in THERE], ids=ids)
def test_the_original_code_gives_what_the_page_says(case):
    assert THERE[case.task](case.doc, case.said.strip()) == pytest.approx(case.there)


def test_lmms_eval_takes_every_short_answer_that_counts_here():
    """So that a score it reports is only ever lowered where its answers are read again (`import`)."""
    assert all(case.lmms >= case.here for case in CASES if case.task in ("gqa", "vqav2", "vizwiz", "mme"))


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_cases_make_it():
    assert scoring_cases.DOCS.read_text(encoding="utf-8") == scoring_cases.page(), "run python tests/scoring_cases.py"


def test_the_page_has_a_section_for_each_benchmark_with_a_rule_of_its_own():
    assert set(scoring_cases.TITLES) == set(BENCHMARKS) - {"textvqa", "mmvet"}
    assert all(any(case.task == name and case.differs for case in CASES) for name in scoring_cases.TITLES)


@pytest.mark.parametrize(
    "said", ["选" + " " * 200_000, "A " * 100_000, "选" * 200_000, "B" + " )" * 100_000, "(" * 200_000]
)
def test_no_answer_takes_long_to_read(said):
    started = time.process_time()
    mmbench.process_results(next(case.doc for case in CASES if case.task == "mmbench_cn"), [said])
    assert time.process_time() - started < 2  # seconds; what grows with the square of the length takes minutes


# -- MMBench at its real size ------------------------------------------------------------------------------------------


def rotated(question: int, said: str) -> list[dict]:
    """One question in four orders of its options, answered alike each time."""
    names = ("a red bird", "two cats", "no animal", "a white horse")
    docs = []
    for turn in range(4):
        turned = names[turn:] + names[:turn]
        doc = {"index": question + turn * 1_000_000, "question": "q", "category": "c", "hint": "nan"}
        docs.append(doc | dict(zip("ABCD", turned, strict=True)) | {"answer": "ABCD"[turned.index("two cats")]})
    return [doc | {"said": said.format(doc["answer"])} for doc in docs]


FORMS = (
    "{}",
    "{}.",
    "({})",
    "two cats",
    "It is {}",
    "A, {}",
    "Cats",
    "two dogs",
    "A picture of {}",
    "",
    "no animal or two",
)


@pytest.fixture(scope="module")
def mmbench_rows() -> list[dict]:
    return [doc for question in range(1, 1101) for doc in rotated(question, FORMS[question % len(FORMS)])]


def test_4_400_rows_of_mmbench_are_scored_in_a_fraction_of_a_second(mmbench_rows):
    scored = [HERE["mmbench"](doc, [doc["said"]]) for doc in mmbench_rows]
    kept = [{"doc_id": i, "gpt_eval_score": one["gpt_eval_score"]} for i, one in enumerate(scored)]
    old = [{**one, "gpt_eval_score": {k: v for k, v in one["gpt_eval_score"].items() if k != "read"}} for one in kept]
    started = time.process_time()
    percent = BENCHMARKS["mmbench"].percent(kept)
    read = time.process_time()
    assert BENCHMARKS["mmbench"].percent(old) == percent == pytest.approx(100 * 5 / 11)
    assert read - started < 0.5 and time.process_time() - read < 2  # seconds; the second reads all answers again
    unread = sum(one["unreadable"] for one in scored)
    assert BENCHMARKS["mmbench"].beside_of(kept) == {"unreadable,none": unread} and unread > 0


def test_under_lmms_evals_protocol_mmbench_is_what_its_static_scorer_gives(mmbench_rows):
    rows = mmbench_rows[:440]
    scored = [mmbench.lmms_eval_results(doc, [doc["said"]]) for doc in rows]
    kept = [{"doc_id": i, "gpt_eval_score": one["gpt_eval_score"]} for i, one in enumerate(scored)]
    theirs = mmbench_evaluator.eval_result([one["gpt_eval_score"] for one in scored], eval_method="static")[0]
    assert BENCHMARKS["mmbench"].percent(kept) == pytest.approx(100 * theirs) and 0 < theirs < 1
