"""What a foreign logged sample counts, by this package's own scorer where the sample carries what that reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from finepruner_lmms.benchmarks import letters, mmbench, mme, pope, sqa
from finepruner_lmms.errors import show

Values = dict[str, Any]
SAME_SCORER = frozenset({"vqav2", "gqa", "vizwiz", "textvqa", "mme"})
"""Benchmarks that lmms-eval's own tasks score as this package does, so that both must agree."""


class Unscorable(ValueError):
    """A sample that lacks what its benchmark's score needs, or has it in another form."""


def rescore(benchmark: str, sample: Values, answer: str, known: Values) -> Any:
    """The `score` of a line of `samples.jsonl`; `known` is what is known of the question elsewhere. `Unscorable`."""
    return _SCORERS.get(benchmark, _exact_match)(sample, answer, known)


def image_of(benchmark: str, sample: Values) -> str | None:
    """The picture that a question is about, where its sample says it as the benchmark's data does."""
    column = {"mme": "question_id", "mmbench": "index", "mmbench_cn": "index", "mmvet": "question_id"}.get(benchmark)
    if column is None:
        return None
    for value in sample.values():
        if isinstance(value, dict) and column in value:
            return str(value[column])
    return None


def question_id_of(sample: Values) -> str | None:
    """The question's own id, where the sample carries one."""
    for value in sample.values():
        if isinstance(value, dict):
            for name in ("question_id", "index", "image"):
                if name in value:
                    return str(value[name])
    return None


def _exact_match(sample: Values, answer: str, known: Values) -> float:
    return _share(sample.get("exact_match"), "exact_match")


def _sqa(sample: Values, answer: str, known: Values) -> float:
    target = sample.get("target")
    if isinstance(target, str) and target.strip() in sqa._LETTERS:
        return float(sqa.read(answer, len(sqa._LETTERS)) == target.strip())  # a choice that is not there is not right
    return _exact_match(sample, answer, known)


def _pope(sample: Values, answer: str, known: Values) -> Values:
    entry = _entry(sample, "pope_f1_mean", "pope_f1_score", "pope_accuracy", "pope_precision", "pope_recall")
    true = str(entry.get("ground_truth", sample.get("target"))).lower().strip()
    if true not in ("yes", "no"):
        raise Unscorable(f"ground_truth: got {show(true)}; expected yes or no")
    said = pope.read(answer)
    category = entry.get("category", known.get("category", pope.ALL_KINDS))
    identity = entry.get("question_id", known.get("question_id", sample["doc_id"]))
    found = {"question_id": identity, "score": float(said == true), "prediction": said}
    return found | {"ground_truth": true, "category": category}


def _mme(sample: Values, answer: str, known: Values) -> Values:
    name = mme.COGNITION if mme.PERCEPTION not in sample and mme.COGNITION in sample else mme.PERCEPTION
    entry = _entry(sample, name)
    for field in ("question_id", "category"):
        if field not in entry:
            raise Unscorable(f"{name}: {field} is missing")
    if entry.get("score") not in (0, 1):
        raise Unscorable(f"{name}: score: got {show(entry.get('score'))}; expected 0 or 1")
    return mme.entry_of({name: entry}) or entry


def _mmbench(sample: Values, answer: str, known: Values) -> Values:
    entry = _entry(sample, "gpt_eval_score", "submission")
    for name in ("index", "question", "answer", "category"):
        if name not in entry:
            raise Unscorable(f"gpt_eval_score: {name} is missing")
    if not str(entry["index"]).isdecimal():
        raise Unscorable(f"gpt_eval_score: index: got {show(entry['index'])}; expected a number")
    options = mmbench.options_of(entry)
    kept = {name: entry[name] for name in ("question", "answer", "category")} | {"index": int(entry["index"])}
    kept |= {letter: options.get(letter) for letter in mmbench.LETTERS} | {"prediction": answer.strip()}
    return kept | {"read": letters.letter_of(answer, options)}


def _mmvet(sample: Values, answer: str, known: Values) -> Values:
    entry = dict(_entry(sample, "gpt_eval_score"))
    for name in ("question_id", "question", "gt_answer", "capabilities"):
        if name not in entry:
            raise Unscorable(f"gpt_eval_score: {name} is missing")
    if "score" in entry:
        entry["score"] = _share(entry["score"], "gpt_eval_score: score")
    return entry | {"pred_answer": answer}


_SCORERS: Mapping[str, Callable[[Values, str, Values], Any]] = {
    "sqa": _sqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench,
    "mmbench_cn": _mmbench,
    "mmvet": _mmvet,
}


def _entry(sample: Values, *names: str) -> Values:
    for name in names:
        if isinstance(entry := sample.get(name), dict):
            return entry
    raise Unscorable(f"{names[0]} is missing, or no object")


def _share(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Unscorable(f"{name}: got {show(value)}; expected a number from 0 to 1")
    if not 0 <= value <= 1:
        raise Unscorable(f"{name}: got {show(value)}, which is of another scale; expected 0 to 1")
    return float(value)
