"""The multiple-choice miniatures: MMBench in two languages and ScienceQA, in the schema of the real datasets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from finepruner_lmms.demo.questions import LETTERS, ask
from finepruner_lmms.demo.scenes import Scene

Row = dict[str, Any]
Scenes = Iterator[tuple[Scene, random.Random]]
_MILLION = 1_000_000


def mmbench(scenes: Scenes, size: int, kind: str = "choice") -> list[Row]:
    """Each question in four rotations of its options; a rotation k has the index i + k million."""
    rows: list[Row] = []
    for scene, rng in scenes:
        if len(rows) == size:
            break
        question = ask(scene, kind, rng)
        if question is None:
            continue
        index = len(rows) // 4
        for turn in range(4):
            options = question.options[turn:] + question.options[:turn]
            category = "attribute_recognition"
            rows.append(
                {
                    "index": index + turn * _MILLION,
                    "question": question.text,
                    "hint": "nan",
                    "answer": LETTERS[options.index(question.answer)],
                    **dict(zip(LETTERS, options, strict=True)),
                    "category": category,
                    "image": scene,
                    "source": "demo",
                    "L2-category": "finegrained_perception (instance-level)",
                    "comment": "nan",
                    "split": "dev",
                    "evidence": question.evidence,
                }
            )
    return rows


def sqa(scenes: Scenes, size: int) -> list[Row]:
    """Answers that a context tells, and answers that only the picture shows, in turn."""
    rows: list[Row] = []
    for scene, rng in scenes:
        if len(rows) == size:
            break
        question = ask(scene, "choice" if len(rows) % 2 else "told", rng)
        if question is None:
            continue
        rows.append(
            {
                "image": scene,
                "question": question.text,
                "choices": list(question.options),
                "answer": question.options.index(question.answer),
                "hint": question.context,
                "task": "closed choice",
                "grade": "grade1",
                "subject": "natural science",
                "topic": "demo",
                "category": "Shapes and colors",
                "skill": question.kind,
                "lecture": "",
                "solution": "",
                "evidence": question.evidence,
            }
        )
    return rows
