"""MMBench as LLaVA-1.5 was evaluated on it, scored without a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MILLION = 1_000_000  # the circular variants of question i have the indices i + k million


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Hint, question and options a line each, then the instruction.

    lmms-eval puts "There are several options:" before the options, joins the hint by a space and adds an empty line
    before the instruction; LLaVA's evaluation does none of that.
    """
    hint = doc["hint"]
    lines = [hint] if isinstance(hint, str) and hint and hint != "nan" else []
    lines.append(doc["question"])
    lines += [f"{letter}. {doc[letter]}" for letter in "ABCD" if _given(doc.get(letter))]
    return "\n".join(lines) + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")


def _given(option: Any) -> bool:
    return isinstance(option, str) and option not in ("", "nan")


def circular_hits(entries: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Index of each question → 1 if lmms-eval's static scorer accepts it in every order of its options, else 0."""
    import pandas as pd
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    data = pd.DataFrame(list(entries)).sort_values(by="index").rename(columns=_lower)
    data["prediction"] = data["prediction"].astype(str)
    answers = dict(zip(data["index"], data["answer"], strict=True))
    return {
        int(index): int(mmbench_evaluator.eval_sub_data(group, answers, static_only=True))
        for index, group in data.groupby(data["index"] % _MILLION)
    }


def _lower(column: str) -> str:
    return column if column in "ABCD" else column.lower()
