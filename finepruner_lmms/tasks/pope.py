"""POPE as LLaVA-1.5 was evaluated on it: an answer is read as "no" if its first sentence denies, else as "yes"."""

from __future__ import annotations

from typing import Any

from lmms_eval.tasks.pope.utils import pope_process_results

_DENIALS = {"no", "not"}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """lmms-eval's scores of the answer as it is read.

    lmms-eval itself accepts nothing but "yes" and "no": "No." is then neither right nor a wrong "yes", and an answer
    that is neither is left out of precision and recall, so that a model that stammers gains by it.
    """
    return pope_process_results(doc, [read(results[0])])


def read(answer: str) -> str:
    """`"yes"` or `"no"`."""
    sentence = answer.partition(".")[0].replace(",", " ")
    return "no" if _DENIALS & set(sentence.lower().split()) else "yes"
