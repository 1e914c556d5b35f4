"""Answers and what they count: here, in the code that a benchmark's published figures come from, and in lmms-eval.

`docs/scoring.md` is written from these: `python tests/scoring_cases.py` does it. Figures of lmms-eval are what it
gives; the others are worked out by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "scoring.md"
UNREAD = "unreadable"


@dataclass(frozen=True)
class Case:
    """An answer `said` to a question of a benchmark. `right` is the right answer as the docs show it.

    `here` is the score by default, `there` that of the original code, `lmms` that of lmms-eval's task; None: it asks a
    model. Those that are equal have no line in the docs.
    """

    task: str
    said: str
    here: float | str
    there: float | None
    lmms: float
    doc: dict[str, Any]
    right: str

    @property
    def differs(self) -> bool:
        return len({self.here, self.there, self.lmms}) > 1


def vqa(right: str | list[str], said: str, here: float, there: float | None, lmms: float) -> Iterator[Case]:
    """A question of VQAv2; ten annotators say the same, or what is listed."""
    given = [right] * 10 if isinstance(right, str) else right
    held = [{"answer": one, "answer_confidence": "yes", "answer_id": i} for i, one in enumerate(given, 1)]
    shown = f"10 × {right}" if isinstance(right, str) else _counted(given)
    yield Case("vqav2", said, here, there, lmms, {"question_id": 1, "image_id": 7, "answers": held}, shown)


def vizwiz(right: str | list[str], said: str, here: float, there: float | None, lmms: float) -> Iterator[Case]:
    given = [right] * 10 if isinstance(right, str) else right
    yield Case("vizwiz", said, here, there, lmms, {"question_id": "a.jpg", "answers": given}, _counted(given))


def gqa(right: str, answers: dict[str, tuple[float, float, float]]) -> Iterator[Case]:
    doc = {"id": "1", "imageId": "n1", "answer": right}
    for said, scores in answers.items():
        yield Case("gqa", said, *scores, doc, right)


def yes_no(task: str, right: str, answers: dict[str, tuple[float, float, float]]) -> Iterator[Case]:
    doc = {"question_id": "1", "answer": right, "category": "popular" if task == "pope" else "color"}
    for said, scores in answers.items():
        yield Case(task, said, *scores, doc | {"image_source": "COCO_1"}, right)


def sqa(answers: dict[str, tuple[float, float, float]]) -> Iterator[Case]:
    """Three choices, of which B, brick, is right."""
    for said, scores in answers.items():
        yield Case("sqa", said, *scores, {"choices": ["wood", "brick", "glass"], "answer": 1}, "B (of A to C)")


ANIMALS = {"A": "a cat", "B": "two birds", "C": "a horse", "D": "dogs that run"}
TIERE = {"A": "一只猫", "B": "两只鸟", "C": "一匹马", "D": "维生素C"}


def mmbench(
    right: str, answers: dict[str, tuple[float | str, float | None, float]], options: dict[str, str] = ANIMALS
) -> Iterator[Case]:
    doc = {"index": 3, "question": "which?", "hint": "nan", "category": "c", "answer": right} | options
    task = "mmbench" if options is ANIMALS else "mmbench_cn"
    for said, scores in answers.items():
        yield Case(task, said, *scores, doc, f"{right}. {options[right]}")


def _counted(given: list[str]) -> str:
    return ", ".join(f"{given.count(one)} × {one}" for one in dict.fromkeys(given))


MEN, NUMBER = ["men's"] * 6 + ["male"] * 4, ["two"] * 6 + ["2"] * 4
CASES: tuple[Case, ...] = (
    *gqa(
        "dog",
        {
            "dog": (1, 1, 1), "Dog": (1, 1, 1), "dog.": (1, 1, 1), "Dog...": (1, 1, 1), "a dog": (0, 0, 0),
            "dogs": (0, 0, 0), "": (0, 0, 0), "dog!": (0, 0, 1), '"dog"': (0, 0, 1), "(dog)": (0, 0, 1),
            "dog,": (0, 0, 1), ".dog": (0, 0, 1),
        },
    ),
    *gqa("t-shirt", {"t-shirt": (1, 1, 1), "T-shirt.": (1, 1, 1), "tshirt": (0, 0, 1), "t shirt": (0, 0, 0)}),
    *gqa("women's", {"women's": (1, 1, 1), "womens": (0, 0, 1)}),
    # all ten say the same: the server compares what LLaVA's script made of the answer with it as it stands
    *vqa("red", "red", 1, 1, 1),
    *vqa("red", "Red.", 1, 1, 1),
    *vqa("red", "the red", 1, 1, 1),
    *vqa("red", "green", 0, 0, 0),
    *vqa("red", "", 0, 0, 0),
    *vqa("2", "two", 1, 1, 1),
    *vqa("two", "two", 0, 0, 1),
    *vqa("two", "2", 0, 0, 1),
    *vqa("a cat", "a cat", 0, 0, 1),
    *vqa("1/2", "1/2", 0, 0, 1),
    *vqa("cat", "a cat", 1, 1, 1),
    *vqa("men's", "men's", 0, 0, 1),
    *vqa("it's 5", "It's 5", 0, 0, 1),
    # they do not: both sides are normalised, after LLaVA's script has split "'s"
    *vqa(MEN, "men's", 0, 0, 1),
    *vqa(MEN, "male", 1, 1, 1),
    *vqa(NUMBER, "two", 1, 1, 1),
    *vqa(["a cat"] * 6 + ["dog"] * 4, "cat", 1, 1, 1),
    *vqa(["1/2"] * 6 + ["half"] * 4, "1/2", 1, 1, 1),
    # two of ten agree: 1 of them left out, 1 / 3; another, 2 / 3
    *vqa(["red"] * 2 + ["blue"] * 8, "red", 0.6, 0.6, 0.6),
    *vqa(["red"] * 3 + ["blue"] * 7, "red", 0.9, 0.9, 0.9),
    *vizwiz("unanswerable", "Unanswerable", 1, 1, 1),
    *vizwiz("cat", "A cat.", 1, 1, 1),
    *vizwiz("coca cola", "Coca-Cola", 1, 1, 1),
    *vizwiz("coca-cola", "Coca-Cola", 0, 0, 1),
    *vizwiz("two", "two", 0, 0, 1),
    *vizwiz("2", "two", 1, 1, 1),
    *vizwiz("a cat", "a cat", 0, 0, 1),
    *vizwiz("Cat", "cat", 0, 0, 1),
    *vizwiz(["the end"] * 6 + ["end"] * 4, "end", 1, 1, 1),
    *vizwiz(["the end"] * 8 + ["end"] * 2, "end", 0.6, 0.6, 1),
    *yes_no(
        "pope",
        "no",
        {
            "no": (1, 1, 1), "No": (1, 1, 1), "No.": (1, 1, 0), "No, there is not.": (1, 1, 0),
            "There is not a dog": (1, 1, 0), "Yes": (0, 0, 0), "Yes. There is no dog": (0, 0, 0),
            "There is nothing": (0, 0, 0), "": (0, 0, 0), "No\nYes": (0, 0, 0), "NO": (0, 0, 1),
            "Not at all": (0, 0, 0), "not at all": (1, 1, 0),
        },
    ),
    *yes_no(
        "pope",
        "yes",
        {
            "yes": (1, 1, 1), "Yes.": (1, 1, 0), "Yes, there is.": (1, 1, 0), "No\nYes": (1, 1, 0), "NO": (1, 1, 0),
            "a dog": (1, 1, 0), "no": (0, 0, 0),
        },
    ),
    *yes_no(
        "mme",
        "Yes",
        {
            "Yes": (1, 1, 1), "yes.": (1, 1, 1), "Yes, it is.": (1, 1, 1), "no": (0, 0, 0), "Y": (0, 0, 1),
            "y.": (0, 0, 1), "Well, yes": (0, 0, 0), "": (0, 0, 0), "**Yes**": (0, 0, 0), "...yes": (0, 0, 1),
        },
    ),
    *yes_no(
        "mme",
        "No",
        {"No": (1, 1, 1), "No, there are not.": (1, 1, 1), "Not": (1, 1, 1), "N": (0, 0, 1), "n.": (0, 0, 1)},
    ),
    *sqa(
        {
            "B": (1, 1, 1), "B. brick": (1, 1, 1), "A": (0, 0, 0), "brick": (0, 0, 0), "": (0, 0, 0), "B.": (1, 0, 1),
            "The answer is B": (1, 0, 0), "The answer is B.": (1, 1, 0), "b": (0, 0, 1), "B.brick": (0, 0, 1),
            "The answer is B. No: The answer is A.": (0, 0, 0), "B\nbrick": (0, 0, 0), "D": (0, 0, 0),
        }
    ),
    *mmbench(
        "B",
        {
            "B": (1, 1, 1), "B.": (1, 1, 1), "(B)": (1, 1, 1), "B. two birds": (1, 1, 1), "The answer is B.": (1, 1, 1),
            "It is two birds": (1, 1, 1), "A": (0, 0, 0), "D. two birds": (0, 0, 0), "A, B": (UNREAD, None, 1),
            "B or C": (UNREAD, None, 1), "E": (0, None, 0), "": (UNREAD, None, 0), "**B**": (1, 1, 1),
            "The answer is **B**": (1, 1, 1), "Birds": (UNREAD, None, 1),
        },
    ),
    *mmbench(
        "A",
        {
            "A cat sits on the mat": (1, 1, 1), "A furry one sits here": (UNREAD, None, 1), "A or B": (UNREAD, None, 1),
            "The answer is A": (1, 1, 1), "a big A.": (1, 1, 1), "I choose A because it purrs": (1, 1, 1),
        },
    ),
    *mmbench("D", {"Dogs": (UNREAD, None, 1), "Dogs that run": (1, 1, 1)}),
    *mmbench(
        "B",
        {
            "B": (1, 1, 1), "Ｂ": (1, None, 0), "答案是B": (1, None, 1), "选B": (1, None, 1),
            "（B）": (1, None, 1),
            "B。": (1, None, 1), "B、两只鸟": (1, 1, 1), "正确答案为「B」": (1, None, 1), "B选项": (1, None, 1),
            "两只鸟": (1, 1, 1), "选A还是B": (UNREAD, None, 1), "答案是Ｂ": (1, None, 0), "鸟": (UNREAD, None, 0),
        },
        TIERE,
    ),
    *mmbench("D", {"维生素C": (1, 1, 1)}, TIERE),
    *mmbench("A", {"A 一只猫": (1, 1, 1), "A、一只猫": (1, 1, 1)}, TIERE),
)  # fmt: skip


# -- the page ---------------------------------------------------------------------------------------------------------

TITLES = {
    "gqa": "GQA", "vqav2": "VQAv2", "vizwiz": "VizWiz", "pope": "POPE", "mme": "MME", "sqa": "ScienceQA",
    "mmbench": "MMBench", "mmbench_cn": "MMBench-CN",
}  # fmt: skip
RULES = {
    "gqa": "The answer in small letters, without dots at its end, must be the right one: LLaVA's "
    "`convert_gqa_for_eval.py` and GQA's `eval.py`. lmms-eval drops all punctuation from both.",
    "vqav2": "The answer as LLaVA's `convert_vqav2_for_submission.py` uploads it (number words as digits, no articles, "
    "`'s` split off), compared as the server does: where the annotators do not all say the same, it normalises both "
    "sides, otherwise neither. lmms-eval always normalises both, and splits no `'s`.",
    "vizwiz": "The answer as LLaVA's `convert_vizwiz_for_submission.py` uploads it, compared with the annotators' as "
    "they stand, as VizWiz's API does. lmms-eval normalises the annotators', too.",
    "pope": "LLaVA's `eval_pope.py`: no if *No*, *no* or *not* stands between spaces in the first sentence, else yes. "
    "lmms-eval accepts nothing but *yes* and *no*, and counts F1 over all questions, not the mean of three kinds.",
    "mme": "MME's `calculation.py`: *yes* or *no* among the first four characters. lmms-eval drops dots first and "
    "reads a single letter. Both totals are told, `mme_perception_score` and `mme_total_score`, with "
    "`mme_cognition_score`.",
    "sqa": "Here alone we follow nobody: *B*, *B.*, *B. brick* and *The answer is B* with and without a dot all "
    "count, so that no method gains by the form of its answers. The count of LLaVA's `eval_science_qa.py` is told "
    "beside it as `exact_match_llava`.",
    "mmbench": "One letter that stands alone, else the text of just one option (MMBench's rule in VLMEvalKit, as far "
    "as it goes without a model). What is left goes to a model there; here it is *unreadable*: wrong, counted in the "
    "metric `unreadable`, and read by [a judge](judge.md#mmbench) if one is asked for. lmms-eval's static "
    "scorer guesses.",
    "mmbench_cn": "The same; full-width letters are letters, and `答案是B`, `选B`, `B选项` name one.",
}


def page() -> str:
    """The text of `docs/scoring.md`."""
    lines = [
        "# How answers are scored",
        "",
        "Scores follow the code that the benchmark's published figures come from, so that they compare; `protocol: "
        "lmms_eval` in a matrix file, or `finepruner tasks --protocol lmms_eval`, scores as lmms-eval's own tasks do. "
        "Prompts are the same under both. TextVQA is scored alike by both; MM-Vet by [a judge](judge.md). The code: "
        "[LLaVA](https://github.com/haotian-liu/LLaVA), [VLMEvalKit](https://github.com/open-compass/VLMEvalKit), "
        "[lmms-eval](https://github.com/EvolvingLMMs-Lab/lmms-eval).",
        "",
        "*here* is the default, *original* what the original code gives (–: it asks a model), *lmms-eval* the other "
        "protocol. Every line is a case of `tests/scoring_cases.py`, from which this page is written; cases in which "
        "all agree are tested but not shown. A score is between 0 and 1.",
    ]
    for task, title in TITLES.items():
        lines += ["", f"## {title}", "", RULES[task], "", "| right | answer | here | original | lmms-eval |"]
        lines += ["|---|---|---|---|---|"]
        shown = {(one.right, one.said): one for one in CASES if one.task == task and one.differs}
        for one in shown.values():
            scores = (_number(score) for score in (one.here, one.there, one.lmms))
            lines.append(f"| {one.right} | {_code(one.said)} | {' | '.join(scores)} |")
    return "\n".join(lines) + "\n"


def _number(score: float | str | None) -> str:
    return score if isinstance(score, str) else "–" if score is None else f"{score:g}"


def _code(text: str) -> str:
    return "*nothing*" if not text else f"`{text}`".replace("\n", "⏎").replace("|", "\\|")


if __name__ == "__main__":
    DOCS.write_text(page(), encoding="utf-8")
