"""The easy miniatures: which questions about the demo scenes each benchmark asks.

Each benchmark has scenes of its own, from the test split, or from the tuning split for choosing hyperparameters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from finepruner_lmms.demo import rows
from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.questions import NEGATIVES, NUMBERS, ask, existence
from finepruner_lmms.demo.rows import Row
from finepruner_lmms.demo.scenes import Scene, make_scene
from finepruner_lmms.demo.sizes import SIZES
from finepruner_lmms.demo.tables import Maker, Tables, write


def build(target: Path, split: str) -> None:
    """Write every miniature to `target/<name>/` as parquet, images as JPEG inside."""
    write(_MAKERS, target, split)


def _scenes(split: str, first: int) -> Iterator[tuple[Scene, random.Random]]:
    """Scene after scene, each with its own source of chance."""
    index = first
    while True:
        yield make_scene(split, index), random.Random(f"questions {split} {index}")
        index += 1


def _asked(split: str, first: int, kinds: tuple[str, ...]) -> Iterator[tuple[Scene, Question]]:
    """A question of each kind that a scene allows, scene after scene."""
    for scene, rng in _scenes(split, first):
        for kind in kinds:
            if (question := ask(scene, kind, rng)) is not None:
                yield scene, question


def _pope(split: str, first: int) -> Tables:
    """Six questions per image: a yes and a no for each way of sampling what is absent."""
    found: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(found) == SIZES["pope"]:
            break
        asked = [(how, existence(scene, rng, answer, how)) for how in NEGATIVES for answer in ("yes", "no")]
        whole = [(how, question) for how, question in asked if question is not None]
        if len(whole) == len(asked):
            found += [rows.pope(len(found) + place, scene, one, how) for place, (how, one) in enumerate(whole)]
    return {"": found}


def _vqav2(split: str, first: int) -> Tables:
    """Four kinds of questions per image."""
    types = {"color": "what color is the", "shape": "what", "count": "how many", "exist": "is there a"}
    asked = zip(range(SIZES["vqav2"]), _asked(split, first, tuple(types)), strict=False)
    return {"": [rows.vqav2(number, scene, one, types[one.kind]) for number, (scene, one) in asked]}


def _gqa(split: str, first: int) -> Tables:
    """Queries, verifications and choices."""
    structure = {"color": "query", "shape": "query", "verify": "verify", "pick": "choose", "exist": "verify"}
    images: dict[str, Scene] = {}
    found: list[Row] = []
    for number, (scene, one) in zip(range(SIZES["gqa"]), _asked(split, first, tuple(structure)), strict=False):
        images[image_id := f"d{scene.index}"] = scene
        found.append(rows.gqa(number, image_id, one, structure[one.kind], "obj" if one.kind == "exist" else "attr"))
    table: list[Row] = [{"id": image_id, "image": scene} for image_id, scene in images.items()]
    return {"testdev_balanced_instructions": found, "testdev_balanced_images": table}


def _textvqa(split: str, first: int) -> Tables:
    """Handwritten digits to read."""
    asked = zip(range(SIZES["textvqa"]), _asked(split, first, ("digit",)), strict=False)
    return {"": [rows.textvqa(number, scene, one, "Digit") for number, (scene, one) in asked]}


def _mme(split: str, first: int) -> Tables:
    """Four perception categories in turn; an image gets one question to affirm and one to deny."""
    kinds = [("existence", "exist"), ("count", "number"), ("color", "verify"), ("OCR", "read")]
    found: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(found) == SIZES["mme"]:
            break
        category, kind = kinds[len(found) // 2 % len(kinds)]
        pair = [question for answer in ("yes", "no") if (question := ask(scene, kind, rng, answer)) is not None]
        if len(pair) == 2:
            found += [rows.mme(scene, question, category) for question in pair]
    return {"": found}


def _vizwiz(split: str, first: int) -> Tables:
    """Colours, half of them of shapes that are not there."""
    found: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(found) == SIZES["vizwiz"]:
            break
        question = ask(scene, "absent", rng, "answerable" if len(found) % 2 else "unanswerable")
        if question is not None:
            found.append(rows.vizwiz(0, scene, question))
    return {"": found}


def _mmvet(split: str, first: int) -> Tables:
    """Bare questions; a number may be written as a digit or a word."""
    needed = {"color": "rec", "shape": "rec", "digit": "ocr,spat", "count": "rec,math", "pick": "rec"}
    found: list[Row] = []
    for number, (scene, one) in zip(range(SIZES["mmvet"]), _asked(split, first, tuple(needed)), strict=False):
        also = NUMBERS.get(int(one.answer)) if one.kind == "count" else None
        found.append(rows.mmvet(number, scene, one, needed[one.kind], also))
    return {"": found}


def _mmbench(name: str, kind: str) -> Maker:
    """Choices, each in four rotations of its options."""

    def make(split: str, first: int) -> Tables:
        asked = zip(range(SIZES[name] // 4), _asked(split, first, (kind,)), strict=False)
        return {"": [row for number, (scene, one) in asked for row in rows.mmbench(number, scene, one)]}

    return make


def _sqa(split: str, first: int) -> Tables:
    """Answers that a context tells, and answers that only the picture shows, in turn."""
    found: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(found) == SIZES["sqa"]:
            break
        question = ask(scene, "choice" if len(found) % 2 else "told", rng)
        if question is not None:
            found.append(rows.sqa(scene, question))
    return {"": found}


_MAKERS: dict[str, Maker] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench": _mmbench("mmbench", "choice"),
    "vizwiz": _vizwiz,
    "sqa": _sqa,
    "mmbench_cn": _mmbench("mmbench_cn", "choice_zh"),
    "mmvet": _mmvet,
}
