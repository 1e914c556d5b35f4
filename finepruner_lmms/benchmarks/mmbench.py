"""MMBench and MMBench-CN as LLaVA-1.5 was evaluated on them, scored without a judge as far as letters can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.letters import letter_of
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark, Beside, Rows, Sample
from finepruner_lmms.lazy import np

MILLION = 1_000_000  # the circular variants of question i have the indices i + k million
LETTERS = "ABCD"
UNREADABLE = "unreadable"
"""The rows in which no letter can be read; a judge may."""
_ABSENT = ("", "nan", "none")


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Hint, question and options, each on a line of its own, then the instruction.

    lmms-eval puts "There are several options:" before the options, in English for the Chinese split too, joins the
    hint by a space and adds an empty line before the instruction; LLaVA's `model_vqa_mmbench.py` does none of that.
    """
    lines = [doc["question"]] if is_absent(doc["hint"]) else [doc["hint"], doc["question"]]
    lines += [f"{letter}. {option}" for letter, option in options_of(doc).items()]
    return "\n".join(lines) + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")


def is_absent(value: Any) -> bool:
    """Whether a hint or option is not given: null, NaN, or the words that stand for them."""
    return not isinstance(value, str) or value.strip().lower() in _ABSENT


def options_of(doc: dict[str, Any]) -> dict[str, str]:
    """Letter → option, up to the first that is not given."""
    given: dict[str, str] = {}
    for letter in LETTERS:
        if is_absent(doc.get(letter)):
            break
        given[letter] = doc[letter]
    return given


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """What the circular score needs of one row, with the letter that is read. A missing option is None.

    lmms-eval keeps it as the text "nan", which it then finds in an answer such as "banana".
    """
    return _scored(_entry(doc, results[0]), letter_of(results[0], options_of(doc)))


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The same with the letter of lmms-eval's static scorer, which guesses where it reads none: "D" from "Dogs"."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    entry, choices = _entry(doc, results[0]), list(options_of(doc))
    read = mmbench_evaluator.prefetch_answer(dict(entry)) or extract_mcq_answer(entry["prediction"], choices=choices)
    return _scored(entry, read or None)


def _entry(doc: dict[str, Any], answer: str) -> dict[str, Any]:
    options = options_of(doc)
    entry = {key: doc[key] for key in ("index", "question", "answer", "category")}
    return entry | {letter: options.get(letter) for letter in LETTERS} | {"prediction": answer.strip()}


def _scored(entry: dict[str, Any], read: str | None) -> dict[str, Any]:
    right = float(read == entry["answer"])
    return {"gpt_eval_score": entry | {"read": read}, UNREADABLE: float(read is None), "score": right}


def aggregate(entries: Sequence[dict[str, Any]]) -> float:
    """Percent of the questions that are right in every order of their options."""
    hits = circular_hits(entries)
    return 100 * sum(hits.values()) / len(hits)


def circular_hits(entries: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Index of each question, ascending → 1 if the letter is right in every order of its options, else 0."""
    hits: dict[int, int] = {}
    for entry in entries:
        question = int(entry["index"]) % MILLION
        hits[question] = hits.get(question, 1) & (letter_in(entry) == entry["answer"])
    return dict(sorted(hits.items()))


def letter_in(entry: dict[str, Any]) -> str | None:
    """The letter of an answered row: the one that a judge found, else the one that was read; None if unreadable."""
    return str(entry["letter"]) if "letter" in entry else static_letter(entry)


def static_letter(entry: dict[str, Any]) -> str | None:
    """The letter that was read in an answer without a judge, or that can be (`letters.letter_of`)."""
    if "read" in entry:
        return None if entry["read"] is None else str(entry["read"])
    return letter_of(str(entry["prediction"]), options_of(entry))


def count(flags: Sequence[float]) -> float:
    """How many rows are unreadable."""
    return float(sum(flags))


def unreadable(samples: Sequence[Sample]) -> float:
    """In how many rows no letter was read, and no judge found one: they count as wrong."""
    return count([letter_in(sample["gpt_eval_score"]) is None for sample in samples])


def rows(samples: Sequence[Sample]) -> Rows:
    """One row per question, right only if it is in every order of its options: 0 or 100, and the count `[m, 2]`."""
    ordered = sorted(samples, key=lambda sample: -int(sample["gpt_eval_score"]["index"]))
    first = {int(s["gpt_eval_score"]["index"]) % MILLION: s["doc_id"] for s in ordered}
    hits = circular_hits([s["gpt_eval_score"] for s in samples])
    return np.array([[100.0 * hit, 1.0] for hit in hits.values()]), [first[index] for index in hits]


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench",
    metric="gpt_eval_score,none",
    image_column="index",
    rows=rows,
    points=accuracy.mean,
    full=accuracy.hundred,
    beside=(Beside("unreadable,none", "unreadable rows", of=unreadable),),
    sampling=Sampling(("index",), group=lambda row: int(row["index"]) % MILLION),
)
BENCHMARK_CN = replace(BENCHMARK, name="mmbench_cn", title="MMBench-CN", pool="mmbench")
