"""Miniature benchmarks about the demo scenes, in the schema of the real datasets.

Column names, types and answer formats are those of the datasets that lmms-eval reads, so that the very tasks that run
on real data run on these. One column is added, `evidence`: the boxes of what the question is about (left, top, right,
bottom, in pixels), so that one can see whether a method kept what an answer needs. Each benchmark has scenes of its
own, from the test split, or from the tuning split for choosing hyperparameters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finepruner_lmms.demo import questions, scenes
from finepruner_lmms.demo.choice_benchmarks import mmbench, sqa
from finepruner_lmms.demo.questions import NEGATIVES, Question, ask, existence
from finepruner_lmms.demo.scenes import Scene, make_scene
from finepruner_lmms.demo.sizes import SIZES

Row = dict[str, Any]
_STRIDE = 100_000  # between the scenes of two benchmarks


def build(target: Path, split: str) -> None:
    """Write every miniature to `target/<name>/` as parquet, images as JPEG inside."""
    for place, name in enumerate(_MAKERS):
        tables = _MAKERS[name](split, place * _STRIDE)
        for table, rows in tables.items():
            _save(rows, target / name / table, name)


def _scenes(split: str, first: int) -> Iterator[tuple[Scene, random.Random]]:
    """Scene after scene, each with its own source of chance."""
    index = first
    while True:
        yield make_scene(split, index), random.Random(f"questions {split} {index}")
        index += 1


def _ask_all(scene: Scene, rng: random.Random, kinds: tuple[str, ...]) -> list[Question]:
    """A question of each kind that the scene allows."""
    return [question for kind in kinds if (question := ask(scene, kind, rng)) is not None]


def _pope(split: str, first: int) -> dict[str, list[Row]]:
    """Six questions per image: a yes and a no for each way of sampling what is absent."""
    rows: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(rows) == SIZES["pope"]:
            break
        asked = [(how, existence(scene, rng, answer, how)) for how in NEGATIVES for answer in ("yes", "no")]
        if any(question is None for _, question in asked):
            continue
        for how, question in asked:
            assert question is not None
            number = len(rows)
            rows.append(
                {
                    "id": str(number),
                    "question_id": str(number + 1),
                    "question": question.text,
                    "answer": question.answer,
                    "image_source": f"DEMO_{split}_{scene.index:012d}",
                    "image": scene,
                    "category": how,
                    "evidence": question.evidence,
                }
            )
    return {"": rows}


def _vqav2(split: str, first: int) -> dict[str, list[Row]]:
    """Four kinds of questions per image, each with ten annotators who agree."""
    types = {"color": "what color is the", "shape": "what", "count": "how many", "exist": "is there a"}
    rows: list[Row] = []
    for scene, rng in _scenes(split, first):
        for question in _ask_all(scene, rng, tuple(types)):
            if len(rows) == SIZES["vqav2"]:
                return {"": rows}
            kind = "number" if question.kind == "count" else "yes/no" if question.kind == "exist" else "other"
            answers = [{"answer": question.answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
            rows.append(
                {
                    "question_type": types[question.kind],
                    "multiple_choice_answer": question.answer,
                    "answers": answers,
                    "image_id": scene.index,
                    "answer_type": kind,
                    "question_id": scene.index * 1000 + len(rows),
                    "question": question.text,
                    "image": scene,
                    "evidence": question.evidence,
                }
            )
    raise AssertionError("unreachable: there is always another scene")


def _gqa(split: str, first: int) -> dict[str, list[Row]]:
    """Queries, verifications and choices; images in a table of their own."""
    structure = {"color": "query", "shape": "query", "verify": "verify", "pick": "choose", "exist": "verify"}
    rows: list[Row] = []
    images: dict[str, Scene] = {}
    for scene, rng in _scenes(split, first):
        for question in _ask_all(scene, rng, tuple(structure)):
            if len(rows) == SIZES["gqa"]:
                table = [{"id": image_id, "image": scene} for image_id, scene in images.items()]
                return {"testdev_balanced_instructions": rows, "testdev_balanced_images": table}
            image_id = f"d{scene.index}"
            images[image_id] = scene
            rows.append(_gqa_row(len(rows), image_id, question, structure[question.kind]))
    raise AssertionError("unreachable: there is always another scene")


def _gqa_row(number: int, image_id: str, question: Question, structural: str) -> Row:
    subject = question.subject[0].name if question.subject else "scene"
    semantic = "obj" if question.kind == "exist" else "attr"
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


def _textvqa(split: str, first: int) -> dict[str, list[Row]]:
    """Handwritten digits to read. No OCR tokens: a machine that read them would have answered."""
    rows: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(rows) == SIZES["textvqa"]:
            break
        question = ask(scene, "digit", rng)
        assert question is not None
        rows.append(
            {
                "image_id": f"demo{scene.index:012x}",
                "question_id": len(rows),
                "question": question.text,
                "question_tokens": question.text.rstrip("?").lower().split(),
                "image": scene,
                "image_width": scenes.IMAGE_SIZE,
                "image_height": scenes.IMAGE_SIZE,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": [question.answer] * 10,
                "image_classes": ["Digit"],
                "set_name": "val",
                "ocr_name": [],
                "ocr_info": [],
                "ocr_tokens": [],
                "evidence": question.evidence,
            }
        )
    return {"": rows}


def _mme(split: str, first: int) -> dict[str, list[Row]]:
    """Four perception categories in turn; an image gets one question to affirm and one to deny."""
    kinds = [("existence", "exist"), ("count", "number"), ("color", "verify"), ("OCR", "read")]
    rows: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(rows) == SIZES["mme"]:
            break
        category, kind = kinds[len(rows) // 2 % len(kinds)]
        pair = [question for answer in ("yes", "no") if (question := ask(scene, kind, rng, answer)) is not None]
        if len(pair) < 2:
            continue
        for question in pair:
            rows.append(
                {
                    "question_id": f"{category}/demo{scene.index:012d}.png",
                    "image": scene,
                    "question": f"{question.text} Please answer yes or no.",
                    "answer": question.answer.capitalize(),
                    "category": category,
                    "evidence": question.evidence,
                }
            )
    return {"": rows}


def _vizwiz(split: str, first: int) -> dict[str, list[Row]]:
    """Colours, half of them of shapes that are not there, each with ten annotators who agree."""
    rows: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(rows) == SIZES["vizwiz"]:
            break
        question = ask(scene, "absent", rng, "answerable" if len(rows) % 2 else "unanswerable")
        if question is None:
            continue
        rows.append(
            {
                "question_id": f"VizWiz_demo_{scene.index:08d}.jpg",
                "image": scene,
                "question": question.text,
                "answers": [question.answer] * 10,
                "category": "other" if question.subject else "unanswerable",
                "evidence": question.evidence,
            }
        )
    return {"": rows}


def _mmvet(split: str, first: int) -> dict[str, list[Row]]:
    """Bare questions, with what one must be able to do for each; a number may be written as a digit or a word."""
    needed = {"color": "rec", "shape": "rec", "digit": "ocr,spat", "count": "rec,math", "pick": "rec"}
    rows: list[Row] = []
    for scene, rng in _scenes(split, first):
        for question in _ask_all(scene, rng, tuple(needed)):
            if len(rows) == SIZES["mmvet"]:
                return {"": rows}
            number = questions.NUMBERS.get(int(question.answer)) if question.kind == "count" else None
            rows.append(
                {
                    "question_id": f"v1_{len(rows)}",
                    "image": scene,
                    "question": question.text,
                    "answer": f"{question.answer}<OR>{number}" if number else question.answer,
                    "image_source": f"demo {split} {scene.index}",
                    "capability": needed[question.kind],
                    "evidence": question.evidence,
                }
            )
    raise AssertionError("unreachable: there is always another scene")


_MAKERS: dict[str, Callable[[str, int], dict[str, list[Row]]]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": lambda split, first: {"": mmbench(_scenes(split, first), SIZES["mmbench"])},
    "vizwiz": _vizwiz,
    "sqa": lambda split, first: {"": sqa(_scenes(split, first), SIZES["sqa"])},
    "mmbench_cn": lambda split, first: {"": mmbench(_scenes(split, first), SIZES["mmbench_cn"], "choice_zh")},
    "mmvet": _mmvet,
}


def _save(rows: list[Row], folder: Path, name: str) -> None:
    import datasets

    pictures: dict[Scene, Any] = {}

    def picture(scene: Scene) -> Any:
        if scene not in pictures:
            pictures[scene] = {"bytes": _jpeg(scene), "path": None}
        return pictures[scene]

    plain = [{k: picture(v) if isinstance(v, Scene) else v for k, v in row.items()} for row in rows]
    table = datasets.Dataset.from_list(plain, features=_features(rows[0], name))
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{name}-00000-of-00001.parquet")


def _jpeg(scene: Scene) -> bytes:
    import io

    file = io.BytesIO()
    scene.image().save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _features(row: Row, name: str) -> Any:
    """Types as in the real datasets, also for columns that are empty here."""
    from datasets import Features, Image, List, Value

    text, whole = Value("string"), Value("int64")
    special = {
        "groups": {"global": text, "local": text},
        "types": {"structural": text, "semantic": text, "detailed": text},
        "annotations": {key: List({"objectId": text, "value": text}) for key in ("answer", "fullAnswer", "question")},
        "semantic": List({"operation": text, "argument": text, "dependencies": List(Value("int32"))}),
        "isBalanced": Value("bool"),
        "ocr_info": List({"word": text}),
        "evidence": List(List(Value("int32"))),
        "answers": List({"answer": text, "answer_confidence": text, "answer_id": whole})
        if name == "vqav2"
        else List(text),
    }
    kinds: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Scene):
            kinds[key] = Image()
        elif key in special:
            kinds[key] = special[key]
        elif isinstance(value, list):
            kinds[key] = List(text)
        else:
            kinds[key] = whole if isinstance(value, int) else text
    return Features(kinds)
