"""Inspect's `.eval` logs, one per cell, which `inspect view` shows: questions, pictures, answers, scores, kept tokens.

https://inspect.aisi.org.uk/eval-logs.html; written and read by the package `inspect_ai` itself.
"""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.extras import need
from finepruner_lmms.matrix.export.entries import correctness
from finepruner_lmms.matrix.export.every_eval_ever import question_text, references_of
from finepruner_lmms.matrix.export.study import Exported, selections
from finepruner_lmms.matrix.export.tables import Finished, as_text
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.questions import Questions
from finepruner_lmms.matrix.records import Sample

if TYPE_CHECKING:
    from PIL import Image

_SMALL = 512 * 512  # pixels, up to which a picture is kept exactly


def write_logs(source: Exported, folder: Path) -> list[Path]:
    """A log for each finished cell."""
    log = need("inspect_ai.log", "inspect", "--format")
    written = []
    for one in source.finished:
        begun = _begun(source, one)
        named = (
            f"{begun.isoformat(timespec='seconds').replace(':', '-')}_{one.cell.task.replace('_', '-')}_{one.cell.id}"
        )
        target, partial = folder / f"{named}.eval", folder / f".{named}.partial.eval"
        try:
            log.write_eval_log(_log(log, source, one, begun), str(partial))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        written.append(target)
    return written


def _log(log: Any, source: Exported, one: Finished, begun: datetime) -> Any:
    cell, result, benchmark = one.cell, one.result, benchmark_for(one.cell.task, one.result)
    came = result.provenance
    samples = _samples(log, source, one)
    name = benchmark.metric.partition(",")[0]
    scores = []
    if result.submission is None:
        values = {"score": benchmark.shown(result.metrics[benchmark.metric]), "percent of the maximum": result.percent}
        values = {metric: value for metric, value in values.items() if value is not None}
        if result.standard_error is not None:
            values["standard error, percent"] = result.standard_error
        metrics = {metric: log.EvalMetric(name=metric, value=value) for metric, value in values.items()}
        scores = [log.EvalScore(name=name, scorer=name, metrics=metrics)]
    details = {"cell": cell.id, "row": cell.method.label, "data": cell.data, "identity": cell.identity.model_dump()}
    if came is not None:
        details["provenance"] = came.model_dump(exclude_none=True)
    if result.cost is not None:
        details["cost"] = result.cost
    if result.speed is not None:
        details["speed"] = result.speed.model_dump(exclude_none=True)
    return log.EvalLog(
        status="success",
        eval=log.EvalSpec(
            run_id=cell.id,
            task_id=cell.id,
            created=begun.isoformat(timespec="seconds"),
            task=cell.task,
            task_args={"method": cell.method.method, "budget": cell.method.budget} | cell.method.parameters,
            dataset=log.EvalDataset(
                name=benchmark.title, samples=len(samples), sample_ids=[s.id for s in samples], shuffled=False
            ),
            model=f"{cell.model.pretrained}, {cell.method.label}",
            config=log.EvalConfig(limit=cell.limit, epochs=1),
            packages=dict(came.versions) if came is not None else {},
            metadata=details,
        ),
        results=log.EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores),
        stats=log.EvalStats(started_at=begun.isoformat(timespec="seconds"), completed_at=_ended(came, begun)),
        samples=samples,
    )


def _samples(log: Any, source: Exported, one: Finished) -> list[Any]:
    """A sample per question, in the order of the data."""
    model, scorer = need("inspect_ai.model", "inspect", "--format"), need("inspect_ai.scorer", "inspect", "--format")
    kept = selections(source.store.root / one.folder)
    metric = benchmark_for(one.cell.task, one.result).metric.partition(",")[0]
    found = []
    for place, sample in enumerate(source.samples(one)):
        questions = source.asked(one, sample)
        pictures = _pictures(source, one, sample, questions, place)
        text = question_text(sample, questions)
        if text is None:
            source.note(f"{one.cell.label}: the texts of its questions are not at hand, and are left out")
        asked = model.ChatMessageUser(
            content=[
                *(model.ContentImage(image=picture) for picture in pictures),
                model.ContentText(text=text if text is not None else f"question {sample['doc_id']}"),
            ]
        )
        answer = str(as_text(sample["answer"]))
        output = model.ModelOutput.from_content(one.cell.model.pretrained, answer)
        score = correctness(one.cell.task, sample["score"])
        details = sample["score"] if isinstance(sample["score"], dict) else None
        scores = {} if score is None else {metric: scorer.Score(value=score, answer=answer, metadata=details)}
        about: dict[str, Any] = {"image": sample["image"]}
        if layers := kept.get(sample["doc_id"]):
            about["selections"] = layers
        found.append(
            log.EvalSample(
                id=sample["doc_id"],
                epoch=1,
                input=[asked],
                target=references_of(sample["target"]),
                messages=[asked, output.choices[0].message],
                output=output,
                scores=scores,
                metadata=about,
            )
        )
    return found


def _pictures(source: Exported, one: Finished, sample: Sample, questions: Questions | None, place: int) -> list[str]:
    """What the model was shown, as data addresses."""
    if questions is None:
        if one.cell.method.imported is not None:
            source.note(f"{one.cell.label}: which pictures imported samples are about is not known; they are left out")
        return []
    if place >= source.pictures:
        source.note(f"pictures of the first {source.pictures} questions of each cell are in the logs (--pictures)")
        return []
    return [_address(picture) for picture in questions.pictures(sample["doc_id"])]


def _address(picture: Image.Image) -> str:
    file, small = io.BytesIO(), picture.width * picture.height <= _SMALL
    kind = "png" if small else "jpeg"
    picture.convert("RGB").save(file, kind, **({} if small else {"quality": 90}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _begun(source: Exported, one: Finished) -> datetime:
    came = one.result.provenance
    if came is not None and came.started:
        return datetime.fromisoformat(came.started)
    return datetime.fromtimestamp(int((source.store.root / one.folder / "result.json").stat().st_mtime), UTC)


def _ended(came: Any, begun: datetime) -> str:
    return came.finished if came is not None and came.finished else begun.isoformat(timespec="seconds")
