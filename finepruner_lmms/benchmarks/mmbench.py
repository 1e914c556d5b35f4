"""MMBench and MMBench-CN as LLaVA-1.5 was evaluated on them, scored by lmms-eval's static scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.limits import Sampling
from finepruner_lmms.benchmarks.record import Benchmark, Rows, Sample
from finepruner_lmms.lazy import np

MILLION = 1_000_000  # the circular variants of question i have the indices i + k million
LETTERS = "ABCD"
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
    """What the circular score needs of one row. A missing option is None.

    lmms-eval keeps it as the text "nan", which it then finds in an answer such as "banana".
    """
    options = options_of(doc)
    entry = {key: doc[key] for key in ("index", "question", "answer", "category")}
    letters = {letter: options.get(letter) for letter in LETTERS}
    return {"gpt_eval_score": entry | letters | {"prediction": results[0].strip()}}


def aggregate(entries: Sequence[dict[str, Any]]) -> float:
    """Percent of the questions that are right in every order of their options."""
    hits = circular_hits(entries)
    return 100 * sum(hits.values()) / len(hits)


def circular_hits(entries: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Index of each question → 1 if lmms-eval's static scorer accepts it in every order of its options, else 0.

    An entry with a `letter`, which a judge found in the answer, counts as answered with that.
    """
    import pandas as pd
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    read = [entry | {"prediction": str(entry.get("letter", entry["prediction"]))} for entry in entries]
    data = pd.DataFrame(read).sort_values(by="index")
    answers = dict(zip(data["index"], data["answer"], strict=True))
    return {
        int(index): int(mmbench_evaluator.eval_sub_data(group, answers, static_only=True))
        for index, group in data.groupby(data["index"] % MILLION)
    }


def static_letter(entry: dict[str, Any]) -> str | None:
    """The letter that lmms-eval reads in an answer: one that stands there, else that of the one option whose text does.

    Where it reads none, its static scorer guesses from any capital letter, "D" from "Dogs"; that is not this.
    """
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    return mmbench_evaluator.prefetch_answer(entry | {"prediction": str(entry["prediction"])}) or None


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
    sampling=Sampling(("index",), group=lambda row: int(row["index"]) % MILLION),
)
BENCHMARK_CN = replace(BENCHMARK, name="mmbench_cn", title="MMBench-CN", pool="mmbench")
