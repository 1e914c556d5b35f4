"""The hub's `.eval_results/*.yaml`: what a model's page shows. One file per benchmark, with an entry per row.

https://huggingface.co/docs/hub/eval-results. Only whole benchmarks of the hub's own data are results in that sense.
"""

from __future__ import annotations

from pathlib import Path

from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import write_text
from finepruner_lmms.matrix.export.study import Exported
from finepruner_lmms.matrix.export.tables import Finished
from finepruner_lmms.matrix.measures import benchmark_for


def write_entries(source: Exported, folder: Path) -> list[Path]:
    """`<model>/.eval_results/<task>.yaml`, for the model's repository. `FieldError` if there is none."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found: dict[tuple[str, str], list[EvalResultEntry]] = {}
    for one in source.finished:
        if why := _no_result(one):
            source.note(f"{one.cell.label}: {why}, so it is left out of .eval_results")
            continue
        benchmark, result, came = benchmark_for(one.cell.task, one.result), one.result, one.result.provenance
        repository, _, commit = one.cell.identity.data.rpartition("@")
        entry = EvalResultEntry(
            dataset_id=FACTS[one.cell.task].repo,
            task_id=one.cell.task,
            value=round(benchmark.shown(result.metrics[benchmark.metric]), 4),
            dataset_revision=commit if repository == FACTS[one.cell.task].repo and commit != "?" else None,
            date=came.finished if came is not None else None,
            notes=_notes(one),
        )
        found.setdefault((one.cell.model.pretrained, one.cell.task), []).append(entry)
    if not found:
        why = next(iter(source.notes), "nothing is scored")
        raise FieldError("--format", f"hf: no cell is a result for a model's page ({why})", value="hf")
    written = []
    for (model, task), entries in found.items():
        target = folder / Path(model).name / ".eval_results"
        target.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        write_text(target / f"{task}.yaml", text)
        written.append(target / f"{task}.yaml")
    return written


def _no_result(one: Finished) -> str:
    """Why a cell is no result of a benchmark on the hub, or ""."""
    cell = one.cell
    if cell.method.imported is not None:
        return "which data it was asked is not known"
    if cell.definition:
        return "which data set of the hub lmms-eval's own task reads is for its authors to say"
    if cell.data in MINIATURES:
        return "the miniature benchmarks are on no hub"
    if cell.limit is not None:
        return f"it was asked at most {cell.limit} questions, not the whole benchmark"
    if one.result.submission is not None:
        return "only its server knows a score"
    return ""


def _notes(one: Finished) -> str:
    cell, result, benchmark = one.cell, one.result, benchmark_for(one.cell.task, one.result)
    parts = [
        cell.method.label,
        f"{benchmark.metric.partition(',')[0]}, {'points' if cell.task == 'mme' else 'percent'}",
    ]
    if (error := result.error) is not None and result.percent:
        shown = benchmark.shown(result.metrics[benchmark.metric])
        parts.append(f"standard error over images {error * shown / result.percent:.2f}")
    parts.append(f"{result.answered} questions")
    if result.judge is not None:
        parts.append(f"judged by {', '.join(result.judge.models) or result.judge.name}")
    return "; ".join([*parts, "lmms-eval with finepruner_lmms"])
