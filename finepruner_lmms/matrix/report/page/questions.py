"""The questions behind the scores, as blocks of a page: pictures, texts, and what each row answered, scored and kept.

Of every question a task has the verdicts of all rows, so that what changed between two of them is counted over all of
them; a few hundred are shown, the same that were recorded while the study ran. Together they stay within `Limits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from finepruner_lmms.benchmarks.limits import recorded
from finepruner_lmms.lazy import np
from finepruner_lmms.lmms.traced import Traced
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.questions import NoQuestions, Questions
from finepruner_lmms.matrix.records import Damage
from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.page.answers import Answers, Asked, asked_tasks, category_of, rows_of
from finepruner_lmms.matrix.report.page.blocks import Block
from finepruner_lmms.matrix.report.page.pictures import Placement, allowance, as_seen, boxes_as_seen, thumbnail
from finepruner_lmms.matrix.report.page.traced import map_bytes, traced_entry
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.stored_questions import StoredQuestions, stored_questions
from finepruner_lmms.matrix.traces import read_traces

AnyQuestions = Questions | StoredQuestions
_MOST_TEXT = 2000
"""Characters of a question, a target or an answer; more is cut, and said to be."""


@dataclass(frozen=True)
class Limits:
    """How much a report takes: `questions` that are shown of each task, bytes of all `pictures` and of all `maps`."""

    questions: int = 200
    pictures: int = 11_000_000
    maps: int = 3_000_000


@dataclass
class _Shown:
    """What the data says of the questions that are shown, and its pictures one after another."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    boxes: dict[int, Any] = field(default_factory=dict)
    pictures: list[bytes] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)


def question_blocks(stores: Sequence[Store], board: Leaderboard, limits: Limits | None = None) -> Iterator[Block]:
    """`q/index`; of each task `q/<t>` and `q/pictures/<t>`; of each row that did it `q/<t>/<row>`."""
    limits = limits or Limits()
    rows = rows_of(stores, board)
    tasks = list(asked_tasks(stores, rows))
    index: list[dict[str, Any]] = []
    for place, asked in enumerate(tasks):
        if not any(one.verdicts for one in asked.answers):
            continue
        name = f"q/{place}"
        entry, blocks = _task_blocks(asked, name, limits, len(tasks))
        index.append(entry)
        yield from blocks
    if index:
        labels = [{"number": row.number, "label": row.label, "key": row.key} for row in rows]
        yield Block("q/index", {"rows": labels, "tasks": index})


def _task_blocks(asked: Asked, name: str, limits: Limits, tasks: int) -> tuple[dict[str, Any], list[Block]]:
    numbers = asked.numbers
    chosen = sorted(recorded(numbers, limits.questions))
    notes: list[str] = []
    questions = _open(asked, notes)
    places = {number: place for place, number in enumerate(numbers)}
    placement = _placement(asked.study, asked.cell)
    shown = _shown(asked, questions, chosen, places, placement, limits.pictures // tasks)
    traces = {one.row.number: _traces(one, placement, notes) for one in asked.answers}
    mapped = _mapped(asked, chosen, traces, limits.maps // tasks)
    have = {number for found in traces.values() for number, one in found.items() if map_bytes(one)}
    if left := have - mapped:
        notes.append(
            f"Attention maps of {len(mapped)} of {len(left | mapped)} questions are in this page, those first about "
            "which the rows disagree most; finepruner show draws the others."
        )
    codes, values = _codes(asked.answers)
    categories, each = _categories(asked, questions, numbers)
    blocks = [
        Block(
            name,
            {
                "values": values, "categories": categories, "category": each, "shown": shown.entries,
                "pictures": shown.places, "notes": notes,
            },
        )
    ]  # fmt: skip
    if shown.pictures:
        blocks.append(Block(f"q/pictures/{name.removeprefix('q/')}", b"".join(shown.pictures)))
    for one in asked.answers:
        content: dict[str, Any] = {"codes": _text_of_codes(numbers, one, codes)}
        content["answers"] = [_cut(_answer(one.samples[n])) if n in one.samples else None for n in chosen]
        found = traces[one.row.number]
        content["traces"] = [
            traced_entry(found[n], shown.boxes.get(n, ()), n in mapped) if n in found else None for n in chosen
        ]
        blocks.append(Block(f"{name}/{one.row.number}", content))
    entry = {
        "block": name, "task": asked.task, "title": asked.title, "questions": len(numbers), "shown": len(chosen),
        "higher": asked.higher, "pictures": len(shown.places), "rows": [one.row.number for one in asked.answers],
        "traced": [number for number, found in traces.items() if found],
    }  # fmt: skip
    return entry, blocks


# -- what the data says ----------------------------------------------------------------------------------------------


def _open(asked: Asked, notes: list[str]) -> AnyQuestions | None:
    """The questions of the ten, where their data is at hand; else None, and a note that says why."""
    cell = asked.cell
    try:
        return stored_questions(cell.data, cell.task, cell.submission)
    except NoQuestions as error:
        notes.append(f"Without pictures: {error}.")
        return None


def _placement(study: Study, cell: Cell) -> Placement:
    """How the model's tokens lie over a picture: LLaVA-1.5's, all N of a square; else the picture is only resized."""
    if study.images_differ:
        return "stretch"
    return "crop" if cell.model.image_aspect_ratio == "crop" else "pad"


def _shown(
    asked: Asked,
    questions: AnyQuestions | None,
    chosen: list[int],
    places: dict[int, int],
    placement: Placement,
    most: int,
) -> _Shown:
    found = _Shown()
    known: dict[str, int] = {}
    names = {n: next(str(one.samples[n]["image"]) for one in asked.answers if n in one.samples) for n in chosen}
    each = allowance(len(set(names.values())), most)
    sizes: dict[str, tuple[int, int]] = {}
    start = 0
    for number in chosen:
        sample = next(one.samples[number] for one in asked.answers if number in one.samples)
        entry: dict[str, Any] = {
            "number": number,
            "at": places[number],
            "target": _cut(_target(sample.get("target", ""))),
        }
        if questions is None or number not in questions:
            entry["question"] = _cut(str(sample.get("question", "")))
            found.entries.append(entry)
            continue
        image = names[number]
        entry["question"] = _cut(_asked_text(asked, number) or questions.text(number))
        if image not in known and (pictures := questions.pictures(number)):
            picture = as_seen(pictures[0], placement)
            small = thumbnail(picture, each)
            known[image], sizes[image] = len(found.places), pictures[0].size
            found.places.append([start, len(small.content), small.width, small.height])
            found.pictures.append(small.content)
            start += len(small.content)
            if len(pictures) > 1:
                entry["more"] = len(pictures) - 1
        if image in known:
            entry["picture"] = known[image]
            boxes = boxes_as_seen(questions.evidence(number), sizes[image], placement)
            if boxes:
                found.boxes[number] = boxes
                entry["boxes"] = [[round(side, 4) for side in box] for box in boxes]
        found.entries.append(entry)
    return found


def _asked_text(asked: Asked, number: int) -> str:
    """What the model was asked, as samples have it; "" where those of no row of ours do."""
    own = [one.samples[number] for one in asked.answers if one.cell.method.imported is None and number in one.samples]
    return next((text for sample in own if (text := str(sample.get("question") or ""))), "")


def _categories(asked: Asked, questions: AnyQuestions | None, numbers: list[int]) -> tuple[list[str], list[int]]:
    """The categories' names, and which of them each question is of; none where all are of one."""
    given = questions.categories(asked.task) if questions is not None else {}
    named = []
    for number in numbers:
        sample = next(one.samples[number] for one in asked.answers if number in one.samples)
        named.append(_cut(given.get(number) or category_of(sample), 80))
    names = [name for name, _ in Counter(named).most_common()]
    if len(names) < 2 or len(names) > 200:
        return [], []
    place = {name: where for where, name in enumerate(names)}
    return names, [place[name] for name in named]


# -- what the rows did -----------------------------------------------------------------------------------------------


def _traces(one: Answers, placement: Placement, notes: list[str]) -> dict[int, Traced]:
    if _placement(one.study, one.cell) != placement:  # its tokens would be drawn where they are not
        notes.append(f"{one.row.label}: its tokens are not drawn, as its model sees pictures in another frame.")
        return {}
    try:
        return read_traces(one.folder)
    except Damage as damage:
        notes.append(f"{one.row.label}: {damage}.")
        return {}


def _mapped(asked: Asked, chosen: list[int], traces: dict[int, dict[int, Traced]], most: int) -> set[int]:
    """The questions whose maps are shown: those about which rows disagree most come first, as long as there is room."""

    def disagreement(number: int) -> float:
        return float(np.std([one.verdicts[number] for one in asked.answers if number in one.verdicts] or [0.0]))

    found: set[int] = set()
    for number in sorted(chosen, key=lambda number: (-disagreement(number), number)):
        size = sum(map_bytes(of_row[number]) for of_row in traces.values() if number in of_row)
        if size and size <= most:
            most -= size
            found.add(number)
    return found


def _codes(answers: Sequence[Answers]) -> tuple[dict[float, int], list[float]]:
    """A number for each verdict that occurs, and the verdicts in the order of their numbers, ascending."""
    values = sorted({value for one in answers for value in one.verdicts.values()})
    return {value: code for code, value in enumerate(values, 1)}, values


def _text_of_codes(numbers: list[int], one: Answers, codes: dict[float, int]) -> str:
    """A character for each question: `0` where there is no verdict, and from `1` on the code of it."""
    found = (codes[one.verdicts[n]] if n in one.verdicts else 0 for n in numbers)
    return "".join(chr(ord("0") + min(code, 20_000)) for code in found)


def _answer(sample: Any) -> str:
    answer = sample.get("answer", "")
    return "\n".join(map(str, answer)) if isinstance(answer, list) else str(answer)


def _target(target: Any) -> str:
    """One text; of several right answers each once, the most frequent first."""
    if not isinstance(target, list):
        return str(target)
    counts = Counter(map(str, target)).most_common()
    return " / ".join(text if count == 1 or len(counts) == 1 else f"{text} (×{count})" for text, count in counts)


def _cut(text: str, most: int = _MOST_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
