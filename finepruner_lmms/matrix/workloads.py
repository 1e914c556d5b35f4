"""How much each benchmark asks: questions, images, the length of prompts and answers, and where each number is from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finepruner_lmms.data.errors import DataError
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.data.manifest import read_manifest
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.engine.roofline import Figure


@dataclass(frozen=True)
class Workload:
    """A benchmark for LLaVA-1.5. `text` is what a prompt holds beside its image, in tokens; `steps` are the forwards
    of a batch of 16, the tokens of its longest answer."""

    questions: Figure
    images: Figure
    text: Figure
    steps: Figure


_SYSTEM = 42  # vicuna_v1: the system's sentence and both turns, 166 characters
_PHRASE = "42 + 14 (`single word or phrase`)"
_LETTER = "42 + 16 (`option's letter`)"


def _of(task: str, images: tuple[int, str], text: tuple[int, str], steps: tuple[int, str]) -> Workload:
    facts = FACTS[task]
    return Workload(
        Figure(facts.tables[0].rows or 0, "questions", "of the split", facts.source),
        Figure(images[0], "images", "different ones", images[1]),
        Figure(text[0], "tokens", "of a prompt beside its image", f"4 characters per token: {text[1]}; assumption"),
        Figure(steps[0], "steps", "of a batch of 16", f"{steps[1]}; assumption"),
    )


_MEMORY = "the benchmark's paper, quoted from memory"
_EACH = "one per question"
WORKLOADS: dict[str, Workload] = {
    "vqav2": _of("vqav2", (40_504, _MEMORY), (63, f"{_PHRASE} + 7"), (4, "one or two words")),
    "gqa": _of("gqa", (398, "card of a dataset made from it"), (66, f"{_PHRASE} + 10"), (3, "one word")),
    "vizwiz": _of("vizwiz", (4319, _EACH), (85, f"{_PHRASE} + 21 (hint) + 8"), (6, "`unanswerable` or some words")),
    "sqa": _of("sqa", (2017, _EACH), (143, f"{_LETTER} + 85 (context, choices)"), (2, "a letter")),
    "textvqa": _of("textvqa", (3166, _MEMORY), (115, f"{_PHRASE} + 59 (with OCR tokens)"), (8, "words and numbers")),
    "pope": _of("pope", (500, _MEMORY), (65, f"{_PHRASE} + 9"), (2, "yes or no")),
    "mme": _of("mme", (1187, "two questions per image"), (76, f"{_PHRASE} + 20"), (2, "yes or no")),
    "mmbench": _of("mmbench", (1164, _MEMORY), (123, f"{_LETTER} + 65 (hint, choices)"), (2, "a letter")),
    "mmbench_cn": _of("mmbench_cn", (1164, _MEMORY), (150, "as in English, in Chinese"), (2, "a letter")),
    "mmvet": _of("mmvet", (200, _MEMORY), (54, "42 + 12"), (250, "sentences; the longest of 16")),
}
_UNKNOWN = "not known before it runs; assumption"
OTHER = Workload(
    Figure(3000, "questions", "of a task that is none of the ten", _UNKNOWN),
    Figure(3000, "images", "one per question", _UNKNOWN),
    Figure(120, "tokens", "of a prompt beside its image", _UNKNOWN),
    Figure(16, "steps", "of a batch of 16", _UNKNOWN),
)
"""What is assumed of lmms-eval's other tasks. Finished cells correct it."""


def questions_in(data: str, task: str) -> int | None:
    """How many questions a task has in `data`; None where its folder does not say, and for the public data set."""
    if data == "hub" or task not in FACTS:
        return None
    if data in MINIATURES:
        return MINIATURES[data].sizes[task]
    try:
        manifest = read_manifest(Path(data) / task)
    except DataError:  # reported where it matters
        return None
    return None if manifest is None else manifest.rows.get(FACTS[task].tables[0].folder)


def workload(task: str) -> Workload:
    """How much a task asks."""
    return WORKLOADS.get(task, OTHER)
