"""Folders as lmms-eval writes them, by hand: names of files, keys and forms are those of lmms-eval 0.7.3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Sample = dict[str, Any]


def logged(doc_id: int, target: Any, answer: Any, **metrics: Any) -> Sample:
    """A line of `*_samples_*.jsonl`; the hash is that of nothing, on every line."""
    line = {
        "doc_id": doc_id,
        "target": str(target),
        "filtered_resps": answer,
        "doc_hash": "74234e98",
        "input": f"q{doc_id}?",
    }
    return line | metrics


def pope(doc_id: int, target: str, answer: str, **more: Any) -> Sample:
    """As lmms-eval's own task has it: without the kind of negatives."""
    entry = {"question_id": str(doc_id), "score": float(answer.lower() == target), "prediction": answer.lower()}
    entry |= {"ground_truth": target} | more
    names = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")
    return logged(doc_id, target, answer, **dict.fromkeys(names, entry))


def mme(doc_id: int, image: str, target: str, answer: str, category: str = "OCR") -> Sample:
    entry = {"question_id": image, "category": category, "score": float(target == answer)}
    return logged(doc_id, target, answer, mme_perception_score=entry)


def write(
    folder: Path, tasks: dict[str, list[Sample]], reported: dict[str, dict[str, Any]] | None = None, **about
) -> Path:
    """One run: `about` replaces keys of its results file. Returns that file."""
    folder = folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    date = about.pop("date", "20261126_120000")
    results = {
        "results": {task: {"alias": task} | (reported or {}).get(task, {}) for task in tasks},
        "configs": {task: {"task": task} for task in tasks},
        "n-samples": {task: {"original": len(lines), "effective": len(lines)} for task, lines in tasks.items()},
        "config": {"model": "llava_hf", "model_args": "pretrained=owner/other", "limit": None, "random_seed": 0},
        "model_source": "llava_hf",
        "model_name": "owner/other",
        "lmms_eval_version": "0.7.3",
        "date": date,
    } | about
    file = folder / f"{date}_results.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    for task, lines in tasks.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{date}_samples_{task}.jsonl").write_text(text, encoding="utf-8")
    return file
