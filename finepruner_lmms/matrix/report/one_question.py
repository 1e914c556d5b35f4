"""One question of a study as `show` draws it: what every row answered, and what it had kept of the picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Damage
from finepruner_lmms.matrix.report.page.pictures import Placement, as_seen, boxes_as_seen
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import Store
from finepruner_lmms.matrix.stored_questions import stored_questions
from finepruner_lmms.matrix.tallies import tally_of
from finepruner_lmms.matrix.traces import Traced, read_traces

if TYPE_CHECKING:
    from finepruner_lmms.asking.compared import Comparison, Seen
    from finepruner_lmms.asking.views import Picture


def comparison_of(store: Store, task: str, number: str) -> Comparison:
    """The question `number` of `task`, by its place in the whole data set, as all finished rows answered it.

    `FieldError` where the study has no such task or question, `NoQuestions` where its data is not at hand. A row that
    recorded nothing of the question shows its answer alone.
    """
    from finepruner_lmms.asking.compared import Comparison

    study = store.study()
    check_choice("TASK", task, study.tasks)
    if not number.isdecimal():
        raise FieldError("QUESTION", f"got {number!r}; expected the number of a question", value=number)
    document, cells = int(number), [cell for cell in study.cells if cell.task == task]
    found: list[tuple[Cell, dict[str, Any], Traced | None, Seen]] = []
    answered: set[int] = set()
    for cell, state in zip(cells, store.states(cells), strict=True):
        if state.result is None:
            continue
        folder = store.cell_dir(cell)
        samples = {sample["doc_id"]: sample for sample in read_lines(folder / "samples.jsonl")}
        answered |= samples.keys()
        if document in samples:
            sample, traced = dict(samples[document]), _trace(folder, document)
            tally = tally_of(store, cell, state.result)
            scores = {} if tally is None else dict(zip(tally.documents.tolist(), tally.scores.tolist(), strict=True))
            found.append((cell, sample, traced, _seen(cell, sample, traced, scores.get(document))))
    if not found:
        near = sorted(answered, key=lambda one: abs(one - document))[:3]
        fix = f"give one that was asked, such as {', '.join(map(str, sorted(near)))}" if near else "run the study first"
        raise FieldError("QUESTION", f"no finished row was asked question {document} of {task}", value=number, fix=fix)
    cell, sample, _, _ = found[0]
    questions = stored_questions(cell.data, task, cell.submission)
    placed = next((one for _, _, one, _ in found if one is not None and (one.grid is not None or one.views)), None)
    images = questions.pictures(document)[:1]
    shown = tuple(_picture(study, cell, picture, placed) for picture in images)
    given = questions.evidence(document)
    boxes = boxes_as_seen(given, images[0].size, _placement(study, cell)) if images else ()
    text = str(sample.get("question") or questions.text(document))
    rows = tuple(row for _, _, _, row in found)
    about = f"{study.name}, {task}, question {document}"
    return Comparison(text, shown, rows, about, _target(sample["target"]), boxes)


def _trace(folder: Path, document: int) -> Traced | None:
    try:
        return read_traces(folder).get(document)
    except Damage:  # the answer is still what it was
        return None


def _seen(cell: Cell, sample: dict[str, Any], traced: Traced | None, score: float | None) -> Seen:
    from finepruner_lmms.asking.compared import Seen, Stage

    told: tuple[Stage, ...] = ()
    if traced is not None and (traced.grid is not None or traced.views):
        own, entering = list(traced.separators), traced.entering
        told = tuple(
            Stage(one.layer, (np.delete(one.kept, own),), entering[one.layer], one.heads) for one in traced.stages
        )
    right = None if score is None else score >= 0.5
    known = bool(told) or cell.method.method == "vanilla"
    return Seen(cell.method.label, str(sample["answer"]), told, right=right, recorded=known)


def _picture(study: Study, cell: Cell, picture: Any, placed: Traced | None) -> Picture:
    """As the model saw it; `placed` is a record that says where its visual tokens stand."""
    from finepruner_lmms.asking.views import Picture
    from finepruner_lmms.engine.families.family import View

    seen = as_seen(picture, _placement(study, cell))
    if placed is not None and placed.views:
        return Picture(seen, placed.views, placed.tokens, placed.separators)
    side, grid = math.isqrt(study.num_visual_tokens), None if placed is None else placed.grid
    if grid is None and not study.images_differ and side**2 == study.num_visual_tokens:
        grid = side, side  # nothing was recorded of it, and every picture has the same square
    if grid is None:
        return Picture(seen, (), study.num_visual_tokens)
    return Picture(seen, (View(*grid),), int(np.prod(grid)))


def _placement(study: Study, cell: Cell) -> Placement:
    if study.images_differ:
        return "stretch"
    return "crop" if cell.model.image_aspect_ratio == "crop" else "pad"


def _target(target: Any) -> str:
    return ", ".join(dict.fromkeys(map(str, target))) if isinstance(target, list) else str(target)
