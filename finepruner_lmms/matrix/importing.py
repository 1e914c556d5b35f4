"""The command `import`: what lmms-eval wrote elsewhere becomes a row beside those that were run here.

Scores are computed anew from the logged samples. A question is taken for one of ours where it has the number of one
and the right answers agree; then it is about the same picture, and `compare` pairs both.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.pope import ALL_KINDS
from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.claims import lock
from finepruner_lmms.errors import FieldError, list_names, show
from finepruner_lmms.files import write_json
from finepruner_lmms.judge import mmvet
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.matrix.foreign import ForeignError, ForeignRun, ForeignTask, answer_of, read_run
from finepruner_lmms.matrix.imports import FILE, Import, Imports, Reported, alone, row_of
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.questions import NoQuestions, Questions, open_questions
from finepruner_lmms.matrix.records import Sample
from finepruner_lmms.matrix.rescoring import GIVEN, Unscorable, given, image_of, question_id_of, rescore
from finepruner_lmms.matrix.results import read_lines, write_answered, write_result
from finepruner_lmms.matrix.sections import ModelSection
from finepruner_lmms.matrix.store import Store

_MOST = 80  # characters of a label


def import_results(root: Path, label: str, results: Path, data: str | None = None, replace: bool = False) -> str:
    """Make a row `label` of lmms-eval's results, in an output directory that is made if it is not there.

    `data` is where the questions are (as in a matrix file), and those of the matrix unless it is given. Returns what
    there is to say, a line each. `ForeignError` where the results are not whole or contradict themselves, `FieldError`
    where the label is taken; then nothing is written.
    """
    if root.exists() and not root.is_dir():
        raise FieldError("OUTPUT", f"{str(root)!r} is a file", value=str(root), fix="give a folder")
    store, label = Store(root), _check_label(label)
    run = read_run(results)
    study = store.study() if (root / "matrix.json").exists() or (root / FILE).exists() else None
    imports = store.imports()
    earlier = next((one for one in imports.imports if one.label == label), None)
    if earlier is not None and not replace:
        problem = f"{label!r} was imported already, from {earlier.source}"
        raise FieldError("--label", problem, value=label, fix="give another, or --replace")
    if study is not None and earlier is None and label in (labels := [row.label for row in study.rows]):
        fix = f"give another than {list_names(labels)}"
        raise FieldError("--label", f"{label!r} is a row of the matrix", value=label, fix=fix)
    if earlier is not None and study is not None:  # what is replaced says nothing about itself
        kept = tuple(cell for cell in study.cells if cell.method.label != label)
        study = study.model_copy(update={"cells": kept})
    data = data or next((cell.data for cell in study.cells if cell.method.imported is None), None) if study else data
    made = [_make(store, study, task, data) for task in run.tasks]
    row = row_of(label, run.model)
    cells = [_cell(run, row, task, one) for task, one in zip(run.tasks, made, strict=True)]
    root.mkdir(parents=True, exist_ok=True)
    for cell, one in zip(cells, made, strict=True):
        _write(store, cell, run, label, one)
    new = Import(
        label=label, model=run.model, arguments=run.arguments, source=str(results), files=run.files,
        lmms_eval=run.version, date=run.date, cells=tuple(cells),
        reported=tuple(
            Reported(task=task.name, questions=len(task.samples), metrics=task.metrics, notes=tuple(one.notes))
            for task, one in zip(run.tasks, made, strict=True)
        ),
    )  # fmt: skip
    with lock(root / ".imports.lock", wait=True):
        others = [one for one in store.imports().imports if one.label != label]
        write_json(root / FILE, Imports(imports=(*others, new)).model_dump(mode="json"))
    return "".join(f"{line}\n" for line in _said(label, run, made, root))


def _check_label(label: str) -> str:
    """One line of printable text that no method of ours is called."""
    from finepruner_lmms.pruners.registry import known_methods

    plain = " ".join(label.split())
    if not plain or len(plain) > _MOST or not plain.isprintable():
        problem = f"got {show(label)}; expected 1 to {_MOST} printable characters"
        raise FieldError("--label", problem, value=label)
    if plain in known_methods():
        problem = f"{plain!r} is a method of this package, whose rows the report reads as such"
        raise FieldError("--label", problem, value=label, fix=f"say whose it is, such as '{plain} (fork)'")
    return plain


# -- from logged samples to ours --------------------------------------------------------------------------------------


@dataclass
class _Made:
    """What became of a task: its lines, and what a reader must know of them."""

    benchmark: str
    samples: list[Sample]
    notes: list[str] = field(default_factory=list)
    judge: str | None = None
    waiting: bool = False

    @property
    def logged(self) -> list[dict[str, Any]]:
        """As the benchmark reads them."""
        metric = BENCHMARKS[self.benchmark].metric.partition(",")[0]
        return [{**sample, metric: sample["score"]} for sample in self.samples]


def _make(store: Store, study: Study | None, task: ForeignTask, data: str | None) -> _Made:
    made = _Made(task.benchmark, [])
    protocol = _protocol_of(study, task)
    if study is not None and study.num_layers and task.benchmark not in study.tasks:
        made.notes.append("it is no task of the matrix, so it is kept but not shown")
    known = _Known.of_rows(store, study, task, made.notes)
    if known is None and data is not None:
        known = _Known.of_data(data, task, made.notes)
    for sample in task.samples:
        made.samples.append(_line(task, sample, known, protocol))
    _check_reported(task, made, protocol)
    if known is None:
        if any(image_of(task.benchmark, sample) is None for sample in task.samples):
            made.notes.append(
                "which questions share a picture is not known, so each stands alone: its standard error is that of "
                "independent questions, and `compare` does not pair it with rows that were run here"
            )
    else:
        _choose(made, known)
    if task.benchmark == "pope" and {sample["score"]["category"] for sample in made.samples} == {ALL_KINDS}:
        made.notes.append(
            "the kinds of negatives are not known, so its F1 is over all of them (lmms-eval's pope_f1_score), not the "
            "mean of three that rows run here have"
        )
    if task.benchmark == "textvqa" and task.name != "fp_textvqa":
        made.notes.append("lmms-eval's textvqa_val asks without the OCR tokens that rows run here are given")
    if task.benchmark == "mmvet":
        _judged(task, made)
    return made


class _Known:
    """What is known of a task's questions by their number: picture, right answer, and what a scorer reads besides."""

    def __init__(
        self, asked: Sequence[int], images: dict[int, str], targets: dict[int, Any], fields: dict[int, dict[str, Any]],
        places: Sequence[int] | None,
    ) -> None:  # fmt: skip
        self.asked, self.images, self.targets, self.fields = frozenset(asked), images, targets, fields
        self._places = places

    def number(self, doc_id: int) -> int:
        """The number in the whole data set of a document of the foreign run."""
        return doc_id if self._places is None else self._places[doc_id]

    @classmethod
    def of_rows(cls, store: Store, study: Study | None, task: ForeignTask, notes: list[str]) -> _Known | None:
        """From the samples of a finished row: one that was run here before one that was imported."""
        cells = [cell for cell in study.cells if cell.task == task.benchmark] if study is not None else []
        for cell in sorted(cells, key=lambda cell: cell.method.imported is not None):
            if store.states([cell])[0].result is None:
                continue
            ours = {line["doc_id"]: line for line in read_lines(store.cell_dir(cell) / "samples.jsonl")}
            if cell.method.imported is not None and any(_stands_alone(line) for line in ours.values()):
                continue
            numbers = sorted(ours)
            places = None
            if task.limited:
                if len(numbers) != len(task.samples):
                    these = len(task.samples)
                    notes.append(f"{cell.method.label} was asked {len(numbers)} questions, not these {these}")
                    continue
                places = numbers
            pairs = [(s, places[s["doc_id"]] if places else s["doc_id"]) for s in task.samples]
            common = [(sample, number) for sample, number in pairs if number in ours]
            if not common:
                notes.append(f"none of its questions has the number of one that {cell.method.label} was asked")
                continue
            if _uninformative(task):
                continue  # the data may tell
            if wrong := [(s, n) for s, n in common if not _same(ours[n]["target"], s.get("target"))]:
                sample, number = wrong[0]
                notes.append(
                    f"the right answers of {len(wrong)} of {len(common)} questions are not those that "
                    f"{cell.method.label} has (document {number}: {show(sample.get('target'))}, there "
                    f"{show(ours[number]['target'])}), so that they are other questions"
                )
                continue
            fields = {n: line["score"] for n, line in ours.items() if isinstance(line["score"], dict)}
            return cls(
                numbers,
                {n: line["image"] for n, line in ours.items()},
                {n: line["target"] for n, line in ours.items()},
                fields,
                places,
            )
        return None

    @classmethod
    def of_data(cls, data: str, task: ForeignTask, notes: list[str]) -> _Known | None:
        """From the data itself."""
        if task.limited:
            notes.append("its questions were chosen by this package's limit, and no row run here was asked the same")
            return None
        try:
            questions = open_questions(data, task.benchmark)
        except NoQuestions as error:
            notes.append(str(error))
            return None
        for sample in task.samples:
            if (number := sample["doc_id"]) not in questions:
                notes.append(f"the data {data!r} has no document {number}")
                return None
            if not _is_question(questions, number, sample, task):
                notes.append(f"document {number} of the data {data!r} is another question")
                return None
        numbers = [sample["doc_id"] for sample in task.samples]
        images = questions.images()
        return cls(
            numbers,
            {number: images[number] for number in numbers},
            {number: questions.target(number) for number in numbers},
            {number: questions.fields(number) for number in numbers},
            None,
        )


def _is_question(questions: Questions, number: int, sample: dict[str, Any], task: ForeignTask) -> bool:
    """Whether a sample answers this question of the data: by the right answer, or else by the question's own id."""
    if not _uninformative(task):
        return _same(questions.target(number), sample.get("target"))
    identity, asked = question_id_of(sample), questions.fields(number).get("question_id")
    return identity is not None and _bare(identity) == _bare(str(asked))


def _bare(name: str) -> str:
    """A question's id, which VizWiz has with and without the suffix of its picture."""
    return name.removesuffix(".jpg")


def _uninformative(task: ForeignTask) -> bool:
    """Whether all targets are one word that is no answer: lmms-eval logs "answer" for tasks with ten annotators."""
    return {str(sample.get("target")).strip() for sample in task.samples} <= {"answer", "None", ""}


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two right answers are one; lmms-eval writes every target as Python's text of it."""
    return ours == theirs or str(ours).strip() == str(theirs).strip()


def _stands_alone(line: Sample) -> bool:
    return line["image"] == alone(line["doc_id"])


def _protocol_of(study: Study | None, task: ForeignTask) -> Protocol:
    """What the rows run here are scored by."""
    cells = () if study is None else study.cells
    return next((c.protocol for c in cells if c.task == task.benchmark and c.method.imported is None), LLAVA)


def _line(task: ForeignTask, sample: dict[str, Any], known: _Known | None, protocol: Protocol) -> Sample:
    answer = answer_of(sample, task.file)
    number = sample["doc_id"] if known is None else known.number(sample["doc_id"])
    about = {} if known is None else known.fields.get(number, {})
    try:
        score = rescore(task.benchmark, sample, answer, about, protocol)
    except Unscorable as error:
        raise ForeignError(f"{task.file}:{sample['line']}: {error}") from None
    image = None if known is None else known.images.get(number)
    line: Sample = {
        "doc_id": number,
        "image": image or image_of(task.benchmark, sample) or alone(number),
        "target": sample.get("target") if known is None else known.targets.get(number, sample.get("target")),
        "answer": answer,
        "score": score,
    }
    if isinstance(asked := sample.get("input"), str):
        line["question"] = asked
    return line


def _choose(made: _Made, known: _Known) -> None:
    """Keep the questions that rows here were asked, if all of them are there."""
    here = {sample["doc_id"] for sample in made.samples}
    if known.asked < here:
        made.notes.append(f"{len(known.asked)} of its {len(here)} questions count: those that rows here were asked")
        made.samples = [sample for sample in made.samples if sample["doc_id"] in known.asked]
    elif known.asked != here:
        made.notes.append(
            f"it has {len(known.asked & here)} of the {len(known.asked)} questions that rows here were asked, so that "
            "its score is over others; `compare` refuses it"
        )


def _check_reported(task: ForeignTask, made: _Made, protocol: Protocol) -> None:
    """The samples' own scores must come to what the results file says; what they come to by the rules here is noted."""
    benchmark = BENCHMARKS[task.benchmark]
    reported = task.metrics.get(benchmark.metric)
    if task.benchmark == "mmvet" and any("score" not in sample["score"] for sample in made.samples):
        return
    try:
        value, own = benchmark.value(made.logged), _own_value(task)
    except (ValueError, KeyError) as error:
        raise ForeignError(f"{task.file}: {task.benchmark} cannot be scored: {error}") from None
    if own is not None and not _near(own, value):
        made.notes.append(f"by its own scores it has {own:g}, by the rules of rows here {value:g} (docs/scoring.md)")
    elif protocol == LLAVA and task.benchmark in ("vqav2", "vizwiz") and not task.name.startswith("fp_"):
        made.notes.append(
            "it is scored by lmms-eval's rules, which take more answers for right than those of rows here "
            "(docs/scoring.md), but where the annotators' answers were at hand"
        )
    if reported is None:
        others = ", ".join(sorted(name.partition(",")[0] for name in task.metrics if "stderr" not in name)) or "none"
        ours = benchmark.metric.partition(",")[0]
        made.notes.append(f"{ours} is computed from the samples; its results report {others}")
        return
    told = value if own is None else own
    if _near(reported, told):
        return
    if _near(reported, 100 * told):
        made.notes.append(f"its results report {reported:g}, in percent; the samples give {told:g} of 1")
        return
    said = f"its results report {reported:g} for {benchmark.metric}, but the samples give {told:g}"
    if own is not None:
        raise ForeignError(f"{task.file}: {said}; they are not the samples of these results, or were changed")
    made.notes.append(f"{said} with this package's scorer")


def _own_value(task: ForeignTask) -> float | None:
    """What the scores come to that the samples were logged with; None where lmms-eval scores in another way."""
    benchmark = BENCHMARKS[task.benchmark]
    if task.name.startswith("fp_"):
        return benchmark.value(task.samples)
    if task.benchmark not in GIVEN:
        return None
    metric = benchmark.metric.partition(",")[0]
    scored = [{"doc_id": s["doc_id"], metric: given(task.benchmark, s)} for s in task.samples]
    return benchmark.value(scored)


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _judged(task: ForeignTask, made: _Made) -> None:
    """MM-Vet: who gave the scores, as far as it is known, or that a judge is still to."""
    if any("score" not in sample["score"] for sample in made.samples):
        made.samples = [
            {**sample, "score": {n: v for n, v in sample["score"].items() if n != "score"}} for sample in made.samples
        ]
        made.waiting = True
        made.notes.append("its answers are not judged; `judge OUTPUT` does it")
        return
    models = sorted({str(sample["score"].get("eval_model", "unknown")) for sample in made.samples})
    made.judge = f"{', '.join(models)} (imported)"
    judge = ", ".join(models)
    made.notes.append(f"its scores are those of its own judge, {judge}; scores of other judges do not compare")


# -- cells ------------------------------------------------------------------------------------------------------------


def _cell(run: ForeignRun, row: Any, task: ForeignTask, made: _Made) -> Cell:
    lines = hashlib.sha256(repr(made.samples).encode("utf-8", "surrogatepass")).hexdigest()
    identity = Identity(
        settings=hashlib.sha256(f"import {row.label} {run.arguments}".encode()).hexdigest()[:12],
        dtype="unknown",
        checkpoint=run.model,
        libraries={"lmms_eval": run.version} if run.version else {},
        engine={},
        method={},
        task=task.name,
        data=lines[:12],
    )
    return Cell(
        id=identity.id,
        slug=re.sub(r"[^A-Za-z0-9.]+", "-", f"{task.benchmark}-{row.label}").strip("-")[:80],
        row=0,
        task=task.benchmark,
        method=row,
        model=ModelSection(pretrained=run.model),
        limit=None,
        data="imported",
        submission=False,
        identity=identity,
        judged=made.judge is not None or made.waiting,
    )


def _write(store: Store, cell: Cell, run: ForeignRun, label: str, made: _Made) -> None:
    folder = store.cell_dir(cell)
    folder.mkdir(parents=True, exist_ok=True)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    result: dict[str, Any] = {"id": cell.id, "spec": cell.spec(), "imported": label, "finished": finished}
    result |= {"answered": len(made.samples), "expected": len(made.samples), "cost": None}
    if made.waiting:
        write_answered(folder, result, made.samples)
        return
    benchmark = BENCHMARKS[made.benchmark]
    images = {sample["doc_id"]: sample["image"] for sample in made.samples}
    result |= {
        "metrics": {benchmark.metric: benchmark.value(made.logged)}
        | benchmark.beside_of(made.logged)
        | _capabilities(made),
        "percent": benchmark.percent(made.logged),
        "standard_error": benchmark.standard_error(made.logged, images),
    }
    if made.judge is not None:
        result["judge"] = {"name": made.judge}
    write_result(folder, result, made.samples)


def _capabilities(made: _Made) -> dict[str, float]:
    """MM-Vet's scores of single capabilities, which a judged result has besides."""
    if made.benchmark != "mmvet":
        return {}
    totals = mmvet.totals([sample["score"] for sample in made.samples])
    return {name: value for name, value in totals.items() if name != "total"}


def _said(label: str, run: ForeignRun, made: Sequence[_Made], root: Path) -> list[str]:
    lines = [f"{label}: {run.model}, {len(made)} task{'s' * (len(made) > 1)}, a row of {root}"]
    for one in made:
        benchmark = BENCHMARKS[one.benchmark]
        score = "waiting for the judge" if one.waiting else f"{benchmark.shown(benchmark.value(one.logged)):.1f}"
        lines.append(f"  {benchmark.title}: {score}, {len(one.samples)} questions")
        lines += [f"    {note}" for note in one.notes]
    return [*lines, *(f"  {note}" for note in run.notes)]
