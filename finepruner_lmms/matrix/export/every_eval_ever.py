"""Every Eval Ever: the evaluation coalition's JSON, one file per cell and one with its questions (schema 0.3.0).

https://github.com/evaleval/every_eval_ever. The folders below `data/` are those of its data store.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finepruner_lmms.checkpoints.fetch import EMBEDDED
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.files import write_json, write_json_lines
from finepruner_lmms.matrix.evidence import JACKKNIFE
from finepruner_lmms.matrix.export.entries import correctness
from finepruner_lmms.matrix.export.study import Exported, selections
from finepruner_lmms.matrix.export.tables import Finished, as_text
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.questions import Questions
from finepruner_lmms.matrix.records import Sample

SCHEMA = "0.3.0"
Json = dict[str, Any]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_UNKNOWN = "unknown"
RIGHT = 0.5
"""From this score on an answer is called correct, which the schema wants yes or no: VQA's accuracies lie between."""


def write_evaluations(source: Exported, folder: Path) -> list[Path]:
    """Two files for each cell with a score."""
    written = []
    for one in source.finished:
        if one.result.submission is not None:
            source.note(f"{one.cell.label}: only its server knows a score, so it is left out")
            continue
        model = model_id(one)
        place = Path("data", *map(_portable, (one.cell.task, *model.split("/", 1))))
        name = str(uuid.UUID(bytes=hashlib.sha256(one.cell.id.encode()).digest()[:16], version=4))
        target = folder / place
        target.mkdir(parents=True, exist_ok=True)
        about = evaluation(source, one, model)
        lines = list(_instances(source, one, about))
        content = write_json_lines(target / f"{name}_samples.jsonl", lines)
        about["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": (place / f"{name}_samples.jsonl").as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(content).hexdigest(),
            "total_rows": len(lines),
        }
        write_json(target / f"{name}.json", about)
        written += [target / f"{name}.json", target / f"{name}_samples.jsonl"]
    return written


def model_id(one: Finished) -> str:
    """The model as `owner/name`, which a path on somebody's disk is not."""
    name = one.cell.model.pretrained
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return name
    owner = "finepruner-lmms" if name in EMBEDDED else "local"
    return f"{owner}/{_portable(Path(name).name or _UNKNOWN)}"


def evaluation(source: Exported, one: Finished, model: str) -> Json:
    """The schema's record of one cell, without the reference to its questions."""
    cell, result = one.cell, one.result
    came = result.provenance
    versions = {} if came is None else came.versions
    own, moment = cell.method.imported is None, _moment(source, one)
    libraries = cell.identity.libraries
    about: Json = {
        "schema_version": SCHEMA,
        "evaluation_id": f"{cell.task}/{model}/{int(moment.timestamp())}/{cell.id}",
        "evaluation_timestamp": moment.isoformat(timespec="seconds"),
        "retrieved_timestamp": str(int(moment.timestamp())),
        "source_metadata": {
            "source_name": "finepruner_lmms" if own else "lmms-eval, imported by finepruner_lmms",
            "source_type": "evaluation_run",
            "source_organization_name": _UNKNOWN,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "lmms_eval",
            "version": libraries.get("lmms_eval") or versions.get("lmms_eval") or _UNKNOWN,
            "additional_details": {f"version of {name}": version for name, version in sorted(versions.items())},
        },
        "model_info": {
            "name": f"{cell.model.pretrained}, {cell.method.label}" if own else cell.method.label,
            "id": model,
            "additional_details": {
                "deployment_type": "self_deployed" if own else _UNKNOWN,
                "model_availability": "open_weights" if own else _UNKNOWN,
                "pruning_method": cell.method.method,
                **({"pruning_budget": str(cell.method.budget)} if cell.method.budget is not None else {}),
                **{f"pruning_{name}": str(as_text(value)) for name, value in sorted(cell.method.parameters.items())},
                "dtype": cell.identity.dtype,
                "checkpoint": cell.identity.checkpoint,
            },
        },
        "evaluation_results": [_result(source, one)],
    }
    if version := versions.get("transformers") or libraries.get("transformers"):
        about["model_info"]["inference_engine"] = {"name": "transformers", "version": version}
    return about


_CHOSEN = ("chosen in whole groups", "the first ones")


def _result(source: Exported, one: Finished) -> Json:
    cell, result, benchmark = one.cell, one.result, benchmark_for(one.cell.task, one.result)
    shown = benchmark.shown(result.metrics[benchmark.metric])
    points = cell.task == "mme"
    full = (100 * shown / result.percent if result.percent else 2000.0) if points else 100.0
    name = benchmark.metric.partition(",")[0]
    metric: Json = {
        "metric_id": f"{cell.task}.{name}" if points or name == "gpt_eval_score" else name,
        "metric_name": name,
        "metric_unit": "points" if points else "percent",
        "lower_is_better": False,
        "score_type": "continuous",
        "min_score": 0.0,
        "max_score": max(full, shown),  # which rounding may put above the other
    }
    if result.measure is not None:
        metric["lower_is_better"] = not result.measure.higher_is_better
        if result.measure.scale is None:  # neither its unit nor its bounds are known
            metric = {key: metric[key] for key in ("metric_id", "metric_name", "lower_is_better")}
    if benchmark.judged and result.judge is not None and result.judge.models:
        from finepruner_lmms.judge.mmvet import rubric

        details = {"deployment_type": _UNKNOWN, "model_availability": _UNKNOWN}
        judges = [{"model_info": {"name": m, "id": m, "additional_details": details}} for m in result.judge.models]
        metric["llm_scoring"] = {"judges": judges, "input_prompt": rubric()}
    details = {"questions": str(result.answered)}
    if result.percent is not None:
        details["percent_of_maximum"] = repr(result.percent)
    if result.judge is not None:
        details["judge"] = result.judge.name
    uncertainty: Json = {"num_samples": result.answered}
    if (error := result.error) is not None and (result.percent or result.measure is not None):
        scaled = error if result.measure is not None or not result.percent else error * shown / result.percent
        drawn = result.schema_version < JACKKNIFE  # by an older version, of 1000 draws
        value = {"value": scaled, "method": "bootstrap over images" if drawn else "jackknife over images"}
        uncertainty |= {"standard_error": value} | ({"num_bootstrap_samples": 1000} if drawn else {})
    found: Json = {
        "evaluation_result_id": f"{cell.id}/{name}",
        "evaluation_name": benchmark.title,
        "source_data": _data(one),
        "metric_config": metric,
        "score_details": {"score": shown, "details": details, "uncertainty": uncertainty},
    }
    if cell.method.imported is None:
        command = None if result.provenance is None else result.provenance.command
        arguments = {"temperature": 0.0} | ({"execution_command": command} if command else {})
        limit = (
            {} if cell.limit is None else {"limit": f"at most {cell.limit} questions, {_CHOSEN[bool(cell.definition)]}"}
        )
        found["generation_config"] = {
            "generation_args": arguments,
            "additional_details": {"decoding": "greedy"} | limit,
        }
    return found


def _data(one: Finished) -> Json:
    cell, title = one.cell, benchmark_for(one.cell.task, one.result).title
    details = {"identity": cell.identity.data}
    if cell.method.imported is not None or cell.data in MINIATURES or cell.definition:
        details["data"] = cell.data
        return {"dataset_name": title, "source_type": "other", "additional_details": details}
    facts = FACTS[cell.task]
    return {
        "dataset_name": title,
        "source_type": "hf_dataset",
        "hf_repo": facts.repo,
        "hf_split": "test" if cell.submission else facts.split,
        "samples_number": one.result.answered,
        "additional_details": details,
    }


def _instances(source: Exported, one: Finished, about: Json) -> Any:
    """A record per question that counts by itself."""
    kept = selections(source.store.root / one.folder)
    result = about["evaluation_results"][0]
    common = {
        "schema_version": SCHEMA,
        "evaluation_id": about["evaluation_id"],
        "model_id": about["model_info"]["id"],
        "evaluation_name": result["evaluation_name"],
        "evaluation_result_id": result["evaluation_result_id"],
        "interaction_type": "single_turn",
    }
    for sample in source.samples(one):
        if (score := correctness(one.cell.task, sample["score"])) is None:
            source.note(f"{one.cell.label}: questions that count nothing by themselves are left out of its records")
            continue
        text, references = question_text(sample, source.asked(one, sample)), references_of(sample["target"])
        answer = str(as_text(sample["answer"]))
        metadata = {"image": str(sample["image"])}
        if layers := kept.get(sample["doc_id"]):
            metadata["kept_tokens"] = ", ".join(
                f"{layer['kept_tokens']} from layer {layer['layer']}" for layer in layers
            )
        if text is None:
            metadata["input"] = "the text of the question is not at hand"
        yield common | {
            "sample_id": str(sample["doc_id"]),
            "sample_hash": hashlib.sha256("\n".join([text or "", *references]).encode()).hexdigest(),
            "input": {"raw": text or "", "reference": references},
            "output": {"raw": [answer]},
            "answer_attribution": [
                {
                    "turn_idx": 0,
                    "source": "output.raw",
                    "extracted_value": _read(sample["score"], answer),
                    "extraction_method": "custom",
                    "is_terminal": True,
                }
            ],
            "evaluation": {"score": score, "is_correct": score >= RIGHT},
            "metadata": metadata,
        }


def question_text(sample: Sample, questions: Questions | None) -> str | None:
    """What was asked, from the data or from an imported sample; None where neither has it."""
    if questions is not None:
        return questions.text(sample["doc_id"])
    return sample.get("question")


def references_of(target: Any) -> list[str]:
    """The right answers as texts: several where annotators gave several."""
    values = target if isinstance(target, list) else [target]
    return [str(as_text(value)) for value in values if value is not None]


def _read(score: Any, answer: str) -> str:
    """What the scorer read in an answer, where it says so."""
    return str(score.get("prediction", answer)) if isinstance(score, dict) else answer


def _moment(source: Exported, one: Finished) -> datetime:
    """When the result was finished."""
    came = one.result.provenance
    if came is not None and came.finished:
        return datetime.fromisoformat(came.finished)
    return datetime.fromtimestamp((source.store.root / one.folder / "result.json").stat().st_mtime, UTC)


def _portable(name: str) -> str:
    """A name for a folder on any system; `data` is taken in that store."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or _UNKNOWN
    return f"{plain}-" if plain == "data" else plain
