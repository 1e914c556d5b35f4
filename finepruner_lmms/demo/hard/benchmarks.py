"""The demanding miniatures: which questions about the crowded scenes each benchmark asks.

Each asks two questions about each of at least 300 scenes of its own, from the test split, or from the tuning split for
choosing hyperparameters. With so many scenes, a difference of some points can be told from chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from finepruner_lmms.demo import rows
from finepruner_lmms.demo.hard.choices import ask
from finepruner_lmms.demo.hard.questions import NEGATIVES, existence
from finepruner_lmms.demo.hard.scenes import Scene, make_scene
from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.rows import Row
from finepruner_lmms.demo.sizes import HARD_SIZES
from finepruner_lmms.demo.tables import Maker, Tables, write

_PER_SCENE = 2


def build(target: Path, split: str) -> None:
    """Write every miniature to `target/<name>/` as parquet, images as JPEG inside."""
    write(_MAKERS, target, split)


def _scenes(split: str, first: int) -> Iterator[tuple[Scene, random.Random]]:
    """Scene after scene, each with its own source of chance."""
    index = first
    while True:
        yield make_scene(split, index), random.Random(f"hard questions {split} {index}")
        index += 1


def _asked(split: str, first: int, number: int, kinds: Sequence[str]) -> Iterator[tuple[int, Scene, Question]]:
    """`number` questions, two of each scene, whose kinds take turns over the scenes; with the number of each."""
    done = 0
    for scene, rng in _scenes(split, first):
        if done >= number:
            return
        found: dict[str, Question] = {}
        for turn in range(2 * len(kinds)):
            kind = kinds[(done + turn) % len(kinds)]
            if len(found) < _PER_SCENE and (question := ask(scene, kind, rng)) is not None:
                found.setdefault(question.text, question)
        if len(found) == _PER_SCENE:
            for question in found.values():
                yield done, scene, question
                done += 1


def _pairs(split: str, first: int, number: int, kinds: Sequence[str]) -> Iterator[tuple[int, Scene, str, Question]]:
    """A question to affirm and one to deny of each scene; `kinds` take turns."""
    done = 0
    for scene, rng in _scenes(split, first):
        if done >= number:
            return
        kind = kinds[done // 2 % len(kinds)]
        pair = [_one_of_pair(scene, rng, kind, answer) for answer in ("yes", "no")]
        if all(pair):
            for question in pair:
                assert question is not None
                yield done, scene, kind, question
                done += 1


def _one_of_pair(scene: Scene, rng: random.Random, kind: str, answer: str) -> Question | None:
    return existence(scene, rng, answer, kind) if kind in NEGATIVES else ask(scene, kind, rng, answer)


def _pope(split: str, first: int) -> Tables:
    """A yes and a no, for each way of sampling what is absent in turn."""
    asked = _pairs(split, first, HARD_SIZES["pope"], NEGATIVES)
    return {"": [rows.pope(number, scene, one, how) for number, scene, how, one in asked]}


def _vqav2(split: str, first: int) -> Tables:
    """Attributes, counts, existence, comparisons and sizes."""
    types = {
        "color": "what color is the", "count": "how many", "shape": "what", "exist": "is there a",
        "rank": "what color is the", "more": "are there",
    }  # fmt: skip
    asked = _asked(split, first, HARD_SIZES["vqav2"], tuple(types))
    return {"": [rows.vqav2(number, scene, one, types[one.kind]) for number, scene, one in asked]}


def _gqa(split: str, first: int) -> Tables:
    """Queries, verifications, choices, comparisons, and relations between things."""
    structure = {
        "beside": ("query", "rel"), "color": ("query", "attr"), "side": ("query", "rel"), "verify": ("verify", "attr"),
        "place": ("verify", "rel"), "pick": ("choose", "attr"), "more": ("compare", "obj"),
    }  # fmt: skip
    found: list[Row] = []
    images: dict[str, Scene] = {}
    for number, scene, one in _asked(split, first, HARD_SIZES["gqa"], tuple(structure)):
        images[image_id := f"d{scene.index}"] = scene
        found.append(rows.gqa(number, image_id, one, *structure[one.kind]))
    table: list[Row] = [{"id": image_id, "image": scene} for image_id, scene in images.items()]
    return {"testdev_balanced_instructions": found, "testdev_balanced_images": table}


def _textvqa(split: str, first: int) -> Tables:
    """Handwritten numbers of two to four digits to read, among others."""
    asked = _asked(split, first, HARD_SIZES["textvqa"], ("read",))
    return {"": [rows.textvqa(number, scene, one, "Plate") for number, scene, one in asked]}


def _mme(split: str, first: int) -> Tables:
    """Four perception categories in turn; an image gets one question to affirm and one to deny."""
    categories = {"number": "count", "place": "position", "verify": "color", "written": "OCR"}
    asked = _pairs(split, first, HARD_SIZES["mme"], tuple(categories))
    return {"": [rows.mme(scene, one, categories[kind]) for _, scene, kind, one in asked]}


def _vizwiz(split: str, first: int) -> Tables:
    """Colours, one of each scene of a shape that is not there in that size."""
    found: list[Row] = []
    for scene, rng in _scenes(split, first):
        if len(found) >= HARD_SIZES["vizwiz"]:
            break
        pair = [ask(scene, "absent", rng, how) for how in ("answerable", "unanswerable")]
        if all(pair):
            found += [rows.vizwiz(place, scene, one) for place, one in enumerate(pair) if one is not None]
    return {"": found}


def _mmvet(split: str, first: int) -> Tables:
    """Bare questions."""
    needed = {
        "color": "rec", "read": "ocr,spat", "count": "rec,math", "beside": "rec,spat", "shape": "rec", "side": "spat",
    }  # fmt: skip
    asked = _asked(split, first, HARD_SIZES["mmvet"], tuple(needed))
    return {"": [rows.mmvet(number, scene, one, needed[one.kind]) for number, scene, one in asked]}


def _mmbench(name: str, kind: str) -> Maker:
    """Choices, each in four rotations of its options."""

    def make(split: str, first: int) -> Tables:
        asked = _asked(split, first, HARD_SIZES[name] // 4, (kind,))
        return {"": [row for number, scene, one in asked for row in rows.mmbench(number, scene, one)]}

    return make


def _sqa(split: str, first: int) -> Tables:
    """Answers that the context tells, that context and picture tell together, and that only the picture shows."""
    asked = _asked(split, first, HARD_SIZES["sqa"], ("legend", "told", "choice", "legend"))
    return {"": [rows.sqa(scene, one) for _, scene, one in asked]}


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
