"""ScienceQA as LLaVA-1.5 was evaluated on it (`eval_science_qa.py`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from finepruner_lmms.benchmarks import accuracy
from finepruner_lmms.benchmarks.record import Benchmark, Beside, Sample

_LETTERS = "ABCDE"
_LETTER_FIRST = re.compile(r"([A-E])(?:\.(?:\s|$)|$)")
_IN_A_SENTENCE = re.compile(r"The answer is ([A-E])\b")
_LLAVAS_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # it wants a character more, whichever it is
AS_LLAVA = "exact_match_llava"
"""The count of LLaVA's own scorer, beside ours."""


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the letter that is read is the right one: as read here, and as LLaVA's scorer reads it."""
    right, choices = _LETTERS[doc["answer"]], len(doc["choices"])
    found = accuracy.scored(float(read(results[0], choices) == right))
    return found | {AS_LLAVA: float(read_as_llava(results[0], choices) == right)}


def lmms_eval_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the letter that lmms-eval reads is the right one; what LLaVA's scorer reads is told as well."""
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results

    found = accuracy.scored(float(sqa_process_results(doc, results)["exact_match"]))
    return found | {AS_LLAVA: process_results(doc, results)[AS_LLAVA]}


def read(answer: str, num_choices: int) -> str | None:
    """The letter in "B", "B.", "B. brick" or "The answer is B."; None where there is none, or no such choice.

    LLaVA's scorer reads neither a bare "B.", which lmms-eval does, nor a sentence that ends with the letter; lmms-eval
    reads no sentence. Here all count, so that no method gains by the form of its answers.
    """
    text = answer.strip()
    if found := _LETTER_FIRST.match(text):
        letters = [found[1]]
    else:
        letters = _IN_A_SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 and letters[0] in _LETTERS[:num_choices] else None


def read_as_llava(answer: str, num_choices: int) -> str | None:
    """The letter that `eval_science_qa.py` reads: "B", "B. brick" or "The answer is B." once; no bare "B."."""
    text = answer.strip()
    if text in _LETTERS and len(text) == 1:
        letters = [text]
    elif text[:1] in _LETTERS and text[1:3] == ". ":
        letters = [text[0]]
    else:
        letters = _LLAVAS_SENTENCE.findall(text)
    return letters[0] if len(letters) == 1 and letters[0] in _LETTERS[:num_choices] else None


def counted_as_llava(samples: Sequence[Sample]) -> float | None:
    """The share that LLaVA's scorer counts as right, of kept samples; None where these lack the right letters."""
    if any(str(sample["target"]) not in tuple(_LETTERS) or not isinstance(sample["answer"], str) for sample in samples):
        return None
    hits = [read_as_llava(sample["answer"], len(_LETTERS)) == sample["target"] for sample in samples]
    return sum(hits) / len(hits)


BENCHMARK = Benchmark(
    name="sqa",
    title="SQA",
    metric=accuracy.METRIC,
    image_column="image",
    rows=accuracy.rows,
    points=accuracy.mean,
    full=accuracy.one,
    factor=100,
    beside=(Beside("exact_match_llava,none", "by LLaVA's scorer", factor=100, of=counted_as_llava),),
)
