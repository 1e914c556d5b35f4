"""Rows of a leaderboard beside what was published of the same method at the same budget, source by source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from finepruner_lmms.benchmarks.protocol import LMMS_EVAL
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.errors import FieldError, check_choice, show
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.report.board import Leaderboard, Line
from finepruner_lmms.matrix.report.reference import rules
from finepruner_lmms.matrix.report.reference.records import MODEL, Published, published
from finepruner_lmms.matrix.store import Store

Verdict = Literal["reproduced", "outside", "not compared"]
_NAMES = re.compile(r"llava\W?v?1\W5\W(vicuna\W)?7b", re.IGNORECASE)
_LAYERS, _TOKENS = 32, 576


@dataclass(frozen=True)
class Against:
    """A score of ours against a published one, in the field's unit.

    `reproduced` means at most `tolerance` away. What is not compared has a reason, `why`, and no difference.
    """

    task: str
    ours: float
    record: Published
    tolerance: float
    why: str | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the published one."""
        return None if self.why else self.ours - self.record.value

    @property
    def verdict(self) -> Verdict:
        """Whether it counts as reproduced."""
        if self.difference is None:
            return "not compared"
        # what is printed has one decimal, so a difference is no finer than that
        return "reproduced" if abs(self.difference) <= self.tolerance + 1e-9 else "outside"


@dataclass(frozen=True)
class Held:
    """A row of ours against one source. `judged` on the source that it is closest to, of all that have it."""

    line: Line
    lineage: str
    source: str
    cells: tuple[Against, ...]
    judged: bool = False

    @property
    def compared(self) -> tuple[Against, ...]:
        """The cells that have a verdict."""
        return tuple(cell for cell in self.cells if cell.difference is not None)

    @property
    def outside(self) -> tuple[Against, ...]:
        """The cells beyond the tolerance."""
        return tuple(cell for cell in self.cells if cell.verdict == "outside")

    def cell(self, task: str) -> Against | None:
        """Its score on a task."""
        return next((cell for cell in self.cells if cell.task == task), None)


@dataclass(frozen=True)
class Literature:
    """All of a leaderboard's rows that were published, lineage by lineage; `missing` says why others have none."""

    rows: tuple[Held, ...]
    missing: tuple[tuple[Line, str], ...]
    warnings: tuple[str, ...]


def literature(board: Leaderboard, stores: Sequence[Store], source: str | None = None) -> Literature:
    """Every row of the leaderboard against every source that compares, or against one `source` alone.

    Published numbers contradict each other by more than a tolerance, so a row is judged on the one source with which
    it agrees most, over all cells that both have. `FieldError` where the
    studies ran a model of another shape than LLaVA-1.5-7B, or the source is not one that compares.
    """
    usable = _usable()
    if source is not None:
        _check_source(source, {name for own in usable.values() for _, name in own})
    warnings = [text for store in stores if (text := _check_model(store.study()))]
    foreign = _foreign_protocols(stores)
    rows: list[Held] = []
    missing: list[tuple[Line, str]] = []
    for line in board.lines:
        place = _place(line)
        if isinstance(place, str):
            missing.append((line, place))
            continue
        held = [
            Held(line, lineage, name, cells)
            for (lineage, name), records in usable.get(place, {}).items()
            if source in (None, name) and (cells := _cells(board, line, records, foreign))
        ]
        if not held:
            missing.append((line, "no source that compares has it"))
            continue
        closest = max(held, key=_agreement)
        rows += [replace(one, judged=one is closest and bool(one.compared)) for one in held]
    order = list(rules.LINEAGES)
    rows.sort(key=lambda row: order.index(row.lineage))  # stable: inside a lineage as on the leaderboard
    return Literature(tuple(rows), tuple(missing), tuple(warnings))


@cache
def _usable() -> dict[rules.Place, dict[tuple[str, str], list[Published]]]:
    """What compares with rows of ours: by place, then by lineage and source."""
    found: dict[rules.Place, dict[tuple[str, str], list[Published]]] = {}
    for record in filter(rules.compares, published()):
        place = rules.Place(record.method, record.budget, record.heads, record.strategy)
        found.setdefault(place, {}).setdefault((record.lineage, rules.source_of(record)), []).append(record)
    return found


def _check_source(source: str, usable: set[str]) -> None:
    for record in published():
        if record.source == source and record.lineage in rules.LEFT_OUT:
            problem = f"{source!r} compares with nothing here: {rules.LEFT_OUT[record.lineage]}"
            raise FieldError("--source", problem, value=source)
    check_choice("--source", source, sorted(usable))


def _check_model(study: Study) -> str | None:
    """A warning where it is not certain that the model is the published one. `FieldError` where it is not."""
    name = show(study.model)
    known = study.num_layers > 0
    if known and (study.images_differ or (study.num_layers, study.num_visual_tokens) != (_LAYERS, _TOKENS)):
        tokens = f"{'up to ' if study.images_differ else ''}{study.num_visual_tokens}"
        problem = f"the published numbers are those of {MODEL} ({_LAYERS} layers, {_TOKENS} visual tokens); "
        problem += f"{study.name} ran {name} ({study.num_layers} layers, {tokens} visual tokens)"
        raise FieldError("--reference", problem, value=study.model)
    miniatures = any(cell.data in MINIATURES for cell in study.cells if cell.method.imported is None)
    if _NAMES.search(study.model) and not miniatures:
        return None
    asked = " on miniature benchmarks" if miniatures else ""
    return f"{study.name} ran {name}{asked}; the published numbers are those of {MODEL} on the whole benchmarks."


def _foreign_protocols(stores: Sequence[Store]) -> dict[tuple[str, str], str]:
    """Imported (row, task) → why its protocol is not the published one."""
    found: dict[tuple[str, str], str] = {}
    for store in stores:
        for one in store.imports().imports:
            names = {cell.task: reported for cell, reported in zip(one.cells, one.reported, strict=True)}
            if "textvqa" in names and names["textvqa"].task != "fp_textvqa":
                found[one.label, "textvqa"] = "published with OCR tokens in the prompt, here without"
            if "pope" in names and any("F1 is over all of them" in note for note in names["pope"].notes):
                found[one.label, "pope"] = "published as the mean of three F1, here one F1 over all"
    return found


def _place(line: Line) -> rules.Place | str:
    if not line.imported:
        return rules.place_of(line.method, line.tokens, line.given)
    words = line.method.split()
    if len(words) == 2 and words[1].isdecimal():
        return rules.Place(words[0].lower(), int(words[1]))
    return "it was imported; a label such as 'fastv 128' says what it is"


def _cells(
    board: Leaderboard, line: Line, records: Sequence[Published], foreign: dict[tuple[str, str], str]
) -> tuple[Against, ...]:
    cells = []
    for task in columns(board):
        record, ours = rules.same_quantity(task, records), _ours(line, task)
        if record is not None and ours is not None:
            why = foreign.get((line.method, task)) or rules.why_not(task, record) or _other_rules(board, line, task)
            cells.append(Against(task, ours, record, rules.tolerance(task), why))
    return tuple(cells)


def columns(board: Leaderboard) -> list[str]:
    """What is compared: the tasks, and MME's total after its perception."""
    return [name for task in board.tasks for name in ((task, rules.MME_TOTAL) if task == "mme" else (task,))]


def heading(column: str) -> str:
    """What a column is called for people."""
    return "MME total" if column == rules.MME_TOTAL else title(column)


def _ours(line: Line, column: str) -> float | None:
    score = line.scores.get("mme" if column == rules.MME_TOTAL else column)
    if score is None or column != rules.MME_TOTAL:
        return None if score is None else score.shown
    return score.beside.get("total")


def _other_rules(board: Leaderboard, line: Line, column: str) -> str | None:
    """Why a score does not compare that other rules, or another judge, gave."""
    task = "mme" if column == rules.MME_TOTAL else column
    if line.scores[task].protocol == LMMS_EVAL:
        return "published by the rules of LLaVA's code, here by lmms-eval's"
    judges = board.judges.get(task, ())
    if task != "mmvet" or all(judge.startswith("gpt-4") for judge in judges):
        return None
    return f"published with GPT-4 as its judge, here {', '.join(judges)}"


def _agreement(row: Held) -> float:
    """How much of a source a row agrees with: each cell counts 1, and less by its distance in tolerances, down to 0."""
    return sum(max(0.0, 1 - abs(cell.difference or 0.0) / cell.tolerance) for cell in row.compared)


def name_of(line: Line) -> str:
    """A row as `compare` takes it: `finepruner 128 heads=16`."""
    given = (f"{name}={value}" for name, value in line.given.items())
    budget = [] if line.method == "vanilla" or line.imported else [str(line.budget)]
    return " ".join([line.method, *budget, *given])


def reasons(found: Literature) -> list[str]:
    """Why cells that are shown are not compared, a line for each reason."""
    tasks: dict[str, list[str]] = {}
    for row in found.rows:
        for cell in row.cells:
            if cell.why and heading(cell.task) not in tasks.setdefault(cell.why, []):
                tasks[cell.why].append(heading(cell.task))
    return [f"{', '.join(names)}: {why}." for why, names in tasks.items()]
