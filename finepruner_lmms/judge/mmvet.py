"""MM-Vet: what the judge is shown, how its reply is read, and the scores of single capabilities."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import re
import statistics
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.judge.judging import Case, require_fields

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_FIELDS = ("question_id", "question", "gt_answer", "capabilities", "pred_answer")
_SCORES = frozenset(tenth / 10 for tenth in range(11))
_SCALE = "a score from 0.0 to 1.0"
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})")
_ARTICLES = {"a", "an", "the"}

Entry = dict[str, Any]
"""An answered question, in lmms-eval's names: `question_id`, `question`, `gt_answer`, `capabilities`, `pred_answer`."""


@functools.cache
def rubric() -> str:
    """MM-Vet's instructions and few-shot examples, ending in a newline.

    They are read from the source of lmms-eval's own task, which cannot be imported without a key. That copy has lost
    the empty line before its table and the table's first heading; they are put back, which gives the published text.
    """
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("lmms_eval: not installed; MM-Vet's instructions for the judge are read from it")
    file = Path(spec.submodule_search_locations[0]) / "tasks" / "mmvet" / "utils.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MM_VET_PROMPT":
            text = str(ast.literal_eval(node.value))
            return text.replace("\ngpt_query_prompt |", "\n\nQuestion |")
    raise RuntimeError(f"{file}: holds no MM_VET_PROMPT; this version of lmms-eval is not supported")


def case(entry: Entry) -> Case:
    """What the judge is asked about an answered question."""
    truth = str(entry["gt_answer"]).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    prompt = f"{rubric()}\n{entry['question']} | {truth} | {entry['pred_answer']} | "
    fingerprint = hashlib.sha256(rubric().encode()).hexdigest()[:12]
    return Case(str(entry["question_id"]), str(entry["pred_answer"]), prompt, fingerprint, read_score)


def read_score(reply: str) -> float:
    """The score in a judge's reply: its first word, or the only number in it.

    `ValueError` if that is none of the eleven that the instructions know: 0.0, 0.1, …, 1.0.

    MM-Vet's evaluation reads the first word alone, and scores 0 when that fails five times.
    """
    words = [word.strip("*`|:;,()[]\"'").rstrip(".") for word in reply.split()]
    numbers = [_number(word) for word in words]
    found = [number for number in numbers if number is not None]
    first = numbers[0] if numbers else None
    if first is None and len(found) != 1:
        raise ValueError(f"expected {_SCALE}")
    score = found[0] if first is None else first
    if not 0 <= score <= 1:
        raise ValueError(f"expected {_SCALE}, got {score:g}")
    if score not in _SCORES:
        raise ValueError(f"expected {_SCALE} in steps of 0.1, got {score:g}")
    return score


def _number(word: str) -> float | None:
    return float(word) if _NUMBER.fullmatch(word) else None


# -- without a judge --------------------------------------------------------------------------------------------------


def exact(entry: Entry) -> float:
    """The `exact_score` of an answered question."""
    return exact_score(str(entry["gt_answer"]), str(entry["pred_answer"]))


def exact_score(truth: str, answer: str) -> float:
    """The share of the `<AND>` parts of `truth` that stand in `answer`, by the best of its `<OR>` alternatives.

    A part stands in the answer if its words do, one after the other, whatever their case, accents and punctuation;
    articles do not count. This is not MM-Vet's score: an answer in other words gets 0.
    """
    said = _words(answer)
    scores = []
    for alternative in truth.split("<OR>"):
        parts = [part for part in alternative.split("<AND>") if part.strip()]
        if parts:
            scores.append(sum(_stands_in(_words(part), said) for part in parts) / len(parts))
    if not scores:
        raise FieldError("gt_answer", f"got {truth!r}; the ground truth is empty", value=truth)
    return max(scores)


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    words = re.findall(r"(?<![\w.])-?\d+(?:[.,:/]\d+)*|\w+", plain) or plain.split()
    return [word for word in words if word not in _ARTICLES] or words


def _stands_in(part: list[str], said: list[str]) -> bool:
    return any(said[start : start + len(part)] == part for start in range(len(said) - len(part) + 1))


# -- scores -----------------------------------------------------------------------------------------------------------


def check_entries(entries: Sequence[Entry]) -> None:
    """`ValueError` naming what is missing in an answered question."""
    require_fields(entries, _FIELDS)


def totals(entries: Sequence[Entry]) -> dict[str, float]:
    """The mean `score` of judged entries in percent: `total`, and each capability that some question needs.

    Where each was judged several times, `spread` is the standard deviation of the total over these times.
    """
    for entry in entries:
        if "score" not in entry:
            problem = f"{entry['question_id']} is not judged yet"
            raise FieldError("mmvet", problem, value=entry, fix="`finepruner judge` does it")
        if not _is_share(entry["score"]):
            problem = f"the score of {entry['question_id']} is {show(entry['score'])}; expected {_SCALE}"
            raise FieldError("mmvet", problem, value=entry)
    means = {"total": _mean([float(entry["score"]) for entry in entries])}
    for name in CAPABILITIES:
        needing = [float(entry["score"]) for entry in entries if name in capabilities(entry)]
        if needing:
            means[name] = _mean(needing)
    times = [entry.get("scores") for entry in entries]
    if all(isinstance(scores, list) and len(scores) > 1 for scores in times):
        rounds = [_mean([float(score) for score in one]) for one in zip(*times, strict=True)]
        means["spread"] = statistics.stdev(rounds)
    return means


def _is_share(score: Any) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1


def capabilities(entry: Entry) -> set[str]:
    """What a question needs."""
    return {name.strip() for name in str(entry["capabilities"]).split(",")}


def _mean(scores: Sequence[float]) -> float:
    return 100 * sum(scores) / len(scores)
