"""ScienceQA as LLaVA-1.5 was evaluated on it (`eval_science_qa.py`)."""

from __future__ import annotations

import re
from typing import Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.record import Benchmark

_LETTERS = "ABCDE"
_LETTER_FIRST = re.compile(r"([A-E])(?:\.(?:\s|$)|$)")
_IN_A_SENTENCE = re.compile(r"The answer is ([A-E])\b")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the letter that is read is the right one."""
    return {"exact_match": float(read(results[0], len(doc["choices"])) == _LETTERS[doc["answer"]])}


def read(answer: str, num_choices: int) -> str | None:
    """The letter in "B", "B.", "B. brick" or "The answer is B."; None where there is none, or no such choice.

    LLaVA's scorer does not read a bare "B.", which lmms-eval does; lmms-eval does not read the sentence, which LLaVA's
    does where it stands once. Here both count.
    """
    text = answer.strip()
    if found := _LETTER_FIRST.match(text):
        letters = [found[1]]
    else:
        letters = _IN_A_SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 and letters[0] in _LETTERS[:num_choices] else None


BENCHMARK = Benchmark(
    name="sqa",
    title="SQA",
    metric=accuracy.METRIC,
    image_column="image",
    rows=accuracy.rows,
    points=accuracy.mean,
    full=accuracy.one,
    factor=100,
)
