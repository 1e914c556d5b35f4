"""Logged samples as lines of ours: whether the questions are ours, and what they score by the rules here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.pope import ALL_KINDS
from finepruner_lmms.benchmarks.protocol import LLAVA, Protocol
from finepruner_lmms.matrix.foreign import ForeignError, ForeignTask, answer_of
from finepruner_lmms.matrix.importing.known import Known
from finepruner_lmms.matrix.imports import alone
from finepruner_lmms.matrix.plan import Study
from finepruner_lmms.matrix.records import Sample
from finepruner_lmms.matrix.rescoring import GIVEN, Unscorable, given, image_of, rescore
from finepruner_lmms.matrix.store import Store


@dataclass
class Made:
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


def made_of(store: Store, study: Study | None, task: ForeignTask, data: str | None) -> Made:
    """A task's samples as lines of ours, known by finished rows, else by `data`. `ForeignError` where they contradict
    their results."""
    made = Made(task.benchmark, [])
    protocol = _protocol_of(study, task)
    if study is not None and study.num_layers and task.benchmark not in study.tasks:
        made.notes.append("it is no task of the matrix, so it is kept but not shown")
    known = Known.of_rows(store, study, task, made.notes)
    if known is None and data is not None:
        known = Known.of_data(data, task, made.notes)
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


def _protocol_of(study: Study | None, task: ForeignTask) -> Protocol:
    """What the rows run here are scored by."""
    cells = () if study is None else study.cells
    return next((c.protocol for c in cells if c.task == task.benchmark and c.method.imported is None), LLAVA)


def _line(task: ForeignTask, sample: dict[str, Any], known: Known | None, protocol: Protocol) -> Sample:
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


def _choose(made: Made, known: Known) -> None:
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


def _check_reported(task: ForeignTask, made: Made, protocol: Protocol) -> None:
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


def _judged(task: ForeignTask, made: Made) -> None:
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
