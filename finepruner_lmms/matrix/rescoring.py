"""What a foreign logged sample counts, by this package's own scorer where the sample carries what that reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finepruner_lmms.benchmarks import annotators, gqa, mmbench, mme, pope, sqa
from finepruner_lmms.benchmarks.protocol import LLAVA, LMMS_EVAL, Protocol
from finepruner_lmms.errors import show

Values = dict[str, Any]
GIVEN = frozenset({"vqav2", "gqa", "vizwiz", "textvqa", "mme"})
"""Benchmarks of which lmms-eval logs a score of each question, so that these must come to what it reports."""


class Unscorable(ValueError):
    """A sample that lacks what its benchmark's score needs, or has it in another form."""


def rescore(benchmark: str, sample: Values, answer: str, known: Values, protocol: Protocol = LLAVA) -> Any:
    """The `score` of a line of `samples.jsonl` by the rules of `protocol`. `Unscorable`.

    `known` is what is known of the question elsewhere. Where the sample and that lack what LLaVA's rules read, the
    score is the one that the sample has. lmms-eval's rules for `GIVEN` take every answer that LLaVA's take, and some
    more, so that what it does not count is wrong under both.
    """
    return _SCORERS.get(benchmark, _exact_match)(sample, answer, known, protocol)


def given(benchmark: str, sample: Values) -> Any:
    """The score that a sample of one of `GIVEN` has. `Unscorable`."""
    return _given_mme(sample) if benchmark == "mme" else _share(_plain(sample.get("exact_match")), "exact_match")


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


def _exact_match(sample: Values, answer: str, known: Values, protocol: Protocol) -> float:
    return _share(_plain(sample.get("exact_match")), "exact_match")


def _gqa(sample: Values, answer: str, known: Values, protocol: Protocol) -> float:
    score, target = _exact_match(sample, answer, known, protocol), sample.get("target")
    if protocol == LLAVA and isinstance(target, str) and target.strip() not in ("", "answer", "None"):
        return min(score, gqa.score(answer, target))
    return score


def _annotated(score: Callable[[str, Sequence[str]], float]) -> Callable[[Values, str, Values, Protocol], float]:
    def scorer(sample: Values, answer: str, known: Values, protocol: Protocol) -> float:
        reported, held = _exact_match(sample, answer, known, protocol), known.get("answers")
        if protocol == LLAVA and isinstance(held, list) and held:
            stricter = score(answer, [str(one["answer"] if isinstance(one, dict) else one) for one in held])
            return min(reported, stricter)
        return reported

    return scorer


def _sqa(sample: Values, answer: str, known: Values, protocol: Protocol) -> float:
    target = sample.get("target")
    if protocol == LLAVA and isinstance(target, str) and target.strip() in sqa._LETTERS:
        return float(sqa.read(answer, len(sqa._LETTERS)) == target.strip())  # a choice that is not there is not right
    return _exact_match(sample, answer, known, protocol)


def _pope(sample: Values, answer: str, known: Values, protocol: Protocol) -> Values:
    entry = _entry(sample, "pope_f1_mean", "pope_f1_score", "pope_accuracy", "pope_precision", "pope_recall")
    true = str(entry.get("ground_truth", sample.get("target"))).lower().strip()
    if true not in ("yes", "no"):
        raise Unscorable(f"ground_truth: got {show(true)}; expected yes or no")
    if protocol == LMMS_EVAL:
        identity = entry.get("question_id", known.get("question_id", sample["doc_id"]))
        return dict(pope.lmms_eval_results({"answer": true, "question_id": identity}, [answer])["pope_f1_mean"])
    said = pope.read(answer)
    category = entry.get("category", known.get("category", pope.ALL_KINDS))
    identity = entry.get("question_id", known.get("question_id", sample["doc_id"]))
    found = {"question_id": identity, "score": float(said == true), "prediction": said}
    return found | {"ground_truth": true, "category": category}


def _mme(sample: Values, answer: str, known: Values, protocol: Protocol) -> Values:
    entry, target = _given_mme(sample), str(sample.get("target")).lower().strip()
    if protocol == LLAVA and target in ("yes", "no"):
        entry |= {"score": min(float(entry["score"]), float(mme.read(answer) == target))}
    return entry


def _given_mme(sample: Values) -> Values:
    name = mme.COGNITION if mme.PERCEPTION not in sample and mme.COGNITION in sample else mme.PERCEPTION
    entry = _entry(sample, name)
    for field in ("question_id", "category"):
        if field not in entry:
            raise Unscorable(f"{name}: {field} is missing")
    if entry.get("score") not in (0, 1):
        raise Unscorable(f"{name}: score: got {show(entry.get('score'))}; expected 0 or 1")
    return mme.entry_of({name: entry}) or {}


def _mmbench(sample: Values, answer: str, known: Values, protocol: Protocol) -> Values:
    entry = _entry(sample, "gpt_eval_score", "submission")
    for name in ("index", "question", "answer", "category"):
        if name not in entry:
            raise Unscorable(f"gpt_eval_score: {name} is missing")
    if not str(entry["index"]).isdecimal():
        raise Unscorable(f"gpt_eval_score: index: got {show(entry['index'])}; expected a number")
    process = mmbench.process_results if protocol == LLAVA else mmbench.lmms_eval_results
    found: Values = process(entry | {"index": int(entry["index"])}, [answer])["gpt_eval_score"]
    return found


def _mmvet(sample: Values, answer: str, known: Values, protocol: Protocol) -> Values:
    entry = dict(_entry(sample, "gpt_eval_score"))
    for name in ("question_id", "question", "gt_answer", "capabilities"):
        if name not in entry:
            raise Unscorable(f"gpt_eval_score: {name} is missing")
    if "score" in entry:
        entry["score"] = _share(entry["score"], "gpt_eval_score: score")
    return entry | {"pred_answer": answer}


_SCORERS: Mapping[str, Callable[[Values, str, Values, Protocol], Any]] = {
    "gqa": _gqa,
    "vqav2": _annotated(annotators.vqav2),
    "vizwiz": _annotated(annotators.vizwiz),
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


def _plain(value: Any) -> Any:
    """A score by itself, which some tasks have in an entry."""
    return value.get("score") if isinstance(value, dict) else value


def _share(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Unscorable(f"{name}: got {show(value)}; expected a number from 0 to 1")
    if not 0 <= value <= 1:
        raise Unscorable(f"{name}: got {show(value)}, which is of another scale; expected 0 to 1")
    return float(value)
