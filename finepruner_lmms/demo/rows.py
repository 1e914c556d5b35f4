"""Rows in the schemas of the ten real datasets, for questions about a scene of either world.

Column names, types and answer formats are those of the datasets that lmms-eval reads, so that the very tasks that run
on real data run on these. One column is added, `evidence`: the boxes of what the question is about (left, top, right,
bottom, in pixels), so that one can see whether a method kept what an answer needs.
"""

from __future__ import annotations

from typing import Any, Protocol

from PIL import Image

from finepruner_lmms.demo.question import LETTERS, Question

Row = dict[str, Any]
IMAGE_SIZE = 336
_MILLION = 1_000_000


class Picture(Protocol):
    """A scene, of whichever world."""

    @property
    def split(self) -> str:
        """The split that it belongs to."""

    @property
    def index(self) -> int:
        """Its number in the split."""

    def image(self) -> Image.Image:
        """The picture, 336×336 RGB."""


def pope(number: int, scene: Picture, question: Question, category: str) -> Row:
    """A question of POPE; `category` says how what is absent was sampled."""
    return {
        "id": str(number),
        "question_id": str(number + 1),
        "question": question.text,
        "answer": question.answer,
        "image_source": f"DEMO_{scene.split}_{scene.index:012d}",
        "image": scene,
        "category": category,
        "evidence": question.evidence,
    }


def vqav2(number: int, scene: Picture, question: Question, question_type: str) -> Row:
    """A question of VQAv2, with ten annotators who agree."""
    kind = "number" if question.kind == "count" else "yes/no" if question.answer in ("yes", "no") else "other"
    answers = [{"answer": question.answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    return {
        "question_type": question_type,
        "multiple_choice_answer": question.answer,
        "answers": answers,
        "image_id": scene.index,
        "answer_type": kind,
        "question_id": scene.index * 1000 + number,
        "question": question.text,
        "image": scene,
        "evidence": question.evidence,
    }


def gqa(number: int, image_id: str, question: Question, structural: str, semantic: str) -> Row:
    """A question of GQA, whose images are in a table of their own."""
    subject = question.subject[0].name if question.subject else "scene"
    full = {"yes": "Yes.", "no": "No."}.get(question.answer, f"The {subject} is {question.answer}.")
    return {
        "id": str(number),
        "imageId": image_id,
        "question": question.text,
        "isBalanced": True,
        "groups": {"global": None, "local": f"demo-{question.kind}"},
        "entailed": "[]",
        "equivalent": f"['{number}']",
        "types": {"structural": structural, "semantic": semantic, "detailed": question.kind},
        "annotations": {"answer": [], "fullAnswer": [], "question": []},
        "semantic": [{"operation": "select", "argument": subject, "dependencies": []}],
        "semanticStr": f"select: {subject}",
        "answer": question.answer,
        "fullAnswer": full,
        "evidence": question.evidence,
    }


def textvqa(number: int, scene: Picture, question: Question, image_class: str) -> Row:
    """A question of TextVQA. No OCR tokens: a machine that read them would have answered."""
    return {
        "image_id": f"demo{scene.index:012x}",
        "question_id": number,
        "question": question.text,
        "question_tokens": question.text.rstrip("?").lower().split(),
        "image": scene,
        "image_width": IMAGE_SIZE,
        "image_height": IMAGE_SIZE,
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "answers": [question.answer] * 10,
        "image_classes": [image_class],
        "set_name": "val",
        "ocr_name": [],
        "ocr_info": [],
        "ocr_tokens": [],
        "evidence": question.evidence,
    }


def mme(scene: Picture, question: Question, category: str) -> Row:
    """One of an image's two questions of MME."""
    return {
        "question_id": f"{category}/demo{scene.index:012d}.png",
        "image": scene,
        "question": f"{question.text} Please answer yes or no.",
        "answer": question.answer.capitalize(),
        "category": category,
        "evidence": question.evidence,
    }


def vizwiz(number: int, scene: Picture, question: Question) -> Row:
    """A question of VizWiz, with ten annotators who agree; `number` among those of its image."""
    suffix = f"_{number}" if number else ""
    return {
        "question_id": f"VizWiz_demo_{scene.index:08d}{suffix}.jpg",
        "image": scene,
        "question": question.text,
        "answers": [question.answer] * 10,
        "category": "unanswerable" if question.answer == "unanswerable" else "other",
        "evidence": question.evidence,
    }


def mmvet(number: int, scene: Picture, question: Question, capability: str, also: str | None = None) -> Row:
    """A bare question of MM-Vet, with what one must be able to do for it; `also` is another way to write the answer."""
    return {
        "question_id": f"v1_{number}",
        "image": scene,
        "question": question.text,
        "answer": f"{question.answer}<OR>{also}" if also else question.answer,
        "image_source": f"demo {scene.split} {scene.index}",
        "capability": capability,
        "evidence": question.evidence,
    }


def mmbench(number: int, scene: Picture, question: Question) -> list[Row]:
    """A question of MMBench in four rotations of its options; rotation k has the index i + k million."""
    rows: list[Row] = []
    for turn in range(4):
        options = question.options[turn:] + question.options[:turn]
        rows.append(
            {
                "index": number + turn * _MILLION,
                "question": question.text,
                "hint": "nan",
                "answer": LETTERS[options.index(question.answer)],
                **dict(zip(LETTERS, options, strict=True)),
                "category": "attribute_recognition",
                "image": scene,
                "source": "demo",
                "L2-category": "finegrained_perception (instance-level)",
                "comment": "nan",
                "split": "dev",
                "evidence": question.evidence,
            }
        )
    return rows


def sqa(scene: Picture, question: Question) -> Row:
    """A question of ScienceQA; its context is the hint."""
    return {
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
