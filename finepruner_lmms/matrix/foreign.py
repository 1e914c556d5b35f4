"""A folder that lmms-eval left: which tasks it has, their logged samples, and what its results file says of them.

Read with distrust: it may be of another version, of a fork, half copied, or of several runs.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finepruner_lmms.errors import Failure, first_line, list_names, show
from finepruner_lmms.files import content_hash, split_lines
from finepruner_lmms.redaction import has_shape_of_key

TASKS = {
    "vqav2_val": "vqav2",
    "gqa": "gqa",
    "vizwiz_vqa_val": "vizwiz",
    "scienceqa_img": "sqa",
    "textvqa_val": "textvqa",
    "pope": "pope",
    "mme": "mme",
    "mmbench_en_dev": "mmbench",
    "mmbench_cn_dev": "mmbench_cn",
    "mmvet": "mmvet",
}
"""lmms-eval's own tasks that ask a benchmark's questions, by name; ours are `fp_<benchmark>`."""
_SECRET = re.compile("key|token|secret|password", re.IGNORECASE)  # of a model behind an address; no result needs it
_RESULTS, _SAMPLES = "_results.json", "_samples_"


class ForeignError(Failure, ValueError):
    """Results that cannot be imported; the text names file, line or field, and how to go on."""


@dataclass(frozen=True)
class ForeignTask:
    """One task of one evaluation. `limited`: this package's limit chose the questions, so `doc_id` is a place there."""

    name: str
    benchmark: str
    samples: list[dict[str, Any]]
    metrics: dict[str, float]
    limited: bool
    file: Path


@dataclass
class ForeignRun:
    """One evaluation, or several of one model that have no task in common."""

    model: str
    arguments: str
    version: str
    date: str
    seeds: dict[str, int]
    git: str
    tasks: list[ForeignTask] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(path: Path) -> ForeignRun:
    """What is in a folder, or of one `*_results.json` where it has several runs. `ForeignError` if no whole run."""
    found: ForeignRun | None = None
    for file in _results_files(path):
        run = _read_one(file)
        if found is None:
            found = run
            continue
        if (run.model, run.arguments) != (found.model, found.arguments):
            raise ForeignError(
                f"{path}: holds results of several models, {show(found.model)} ({show(found.arguments)}) and "
                f"{show(run.model)} ({show(run.arguments)}); give the *_results.json of one"
            )
        if twice := sorted({task.benchmark for task in found.tasks} & {task.benchmark for task in run.tasks}):
            files = [task.file.name for task in [*found.tasks, *run.tasks] if task.benchmark == twice[0]]
            several = f"{list_names(twice)} ({list_names(files)})"
            raise ForeignError(f"{path}: holds several runs of {several}; give the *_results.json of one")
        found.tasks += run.tasks
        found.files |= run.files
        found.notes += run.notes
        found.date = max(found.date, run.date)
    assert found is not None, "there is a results file"
    if not found.tasks:
        known = ", ".join([*TASKS, "fp_<benchmark>"])
        raise ForeignError(f"{path}: {'; '.join(found.notes) or 'no task'}; nothing to import (known tasks: {known})")
    return found


def _results_files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(_RESULTS):
            raise ForeignError(f"{path}: expected a folder of lmms-eval's, or its *{_RESULTS}")
        return [path]
    if not path.is_dir():
        raise ForeignError(f"{path}: there is no such folder")
    files = sorted(path.rglob(f"*{_RESULTS}"))
    if not files:
        some = next(path.rglob(f"*{_SAMPLES}*.jsonl"), None)
        why = f"it has {some.name}, but no *{_RESULTS}, so the run did not end" if some else f"it has no *{_RESULTS}"
        raise ForeignError(f"{path}: {why}; expected the folder that lmms-eval's --output_path named")
    return files


def _read_one(file: Path) -> ForeignRun:
    results = _json(file)
    config = _part(results, "config", file)
    run = ForeignRun(
        model=str(results.get("model_name") or config.get("model") or "unknown"),
        arguments=_arguments(results, config),
        version=str(results.get("lmms_eval_version") or ""),
        date=str(results.get("date") or ""),
        seeds={n: config[n] for n in ("random_seed", "numpy_seed", "torch_seed") if isinstance(config.get(n), int)},
        git=str(results.get("git_hash") or ""),
        files={file.name: content_hash(file)},
    )
    if (limit := config.get("limit")) is not None:
        run.notes.append(f"lmms-eval's own limit was {limit}: the first questions, of one kind where data is ordered")
    counts, configs = _part(results, "n-samples", file), _part(results, "configs", file)
    for name, scores in _part(results, "results", file).items():
        if (benchmark := _benchmark(name)) is None:
            run.notes.append(f"{name} is no task of one of the ten benchmarks, and is left out")
            continue
        samples = file.with_name(f"{file.name.removesuffix(_RESULTS)}{_SAMPLES}{name}.jsonl")
        if not samples.is_file():
            run.notes.append(f"{name} has no {samples.name} (lmms-eval writes it with --log_samples), and is left out")
            continue
        lines = read_samples(samples)
        _check_whole(lines, counts.get(name), samples)
        about = configs.get(name)
        chosen = isinstance(about, dict) and "chooser" in str(about.get("process_docs"))
        limited = chosen and name.startswith("fp_")
        run.tasks.append(ForeignTask(name, benchmark, lines, _numbers(scores), limited, samples))
        run.files[samples.name] = content_hash(samples)
    for one in {task.benchmark for task in run.tasks}:
        if len(several := [task.name for task in run.tasks if task.benchmark == one]) > 1:
            names = list_names(several)
            raise ForeignError(f"{file}: {names} are the same benchmark, {one}; import a run with one of them")
    return run


def read_samples(file: Path) -> list[dict[str, Any]]:
    """The logged samples by ascending `doc_id`, each there once."""
    found: dict[int, dict[str, Any]] = {}
    try:
        lines = split_lines(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForeignError(f"{file}: cannot be read: {first_line(error)}") from None
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ForeignError(f"{file}:{number}: not JSON: {first_line(error)}") from None
        if not isinstance(sample, dict):
            raise ForeignError(f"{file}:{number}: holds a {type(sample).__name__}, not a logged sample")
        identity = sample.get("doc_id")
        if not isinstance(identity, int) or isinstance(identity, bool) or identity < 0:
            raise ForeignError(f"{file}:{number}: doc_id: got {show(identity)}; expected a number of a document")
        if identity in found:
            raise ForeignError(
                f"{file}:{number}: doc_id {identity} is there twice; lmms-eval appends where two runs end in the same "
                "second, and repeats where --repeats says so: give one run's samples"
            )
        found[identity] = _encodable(sample) | {"line": number}
    if not found:
        raise ForeignError(f"{file}: holds no samples")
    return [found[identity] for identity in sorted(found)]


def _encodable(sample: dict[str, Any]) -> dict[str, Any]:
    """The same where it can be written as UTF-8; halves of surrogate pairs, which JSON may have, become `?`."""
    text = json.dumps(sample, ensure_ascii=False)
    return sample if text.isascii() else dict(json.loads(text.encode("utf-8", "replace")))


def answer_of(sample: dict[str, Any], file: Path) -> str:
    """The model's answer, which versions wrap in none, one or two lists."""
    answer = sample.get("filtered_resps", sample.get("resps"))
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str):
        raise ForeignError(f"{file}:{sample['line']}: filtered_resps: got {show(answer)}; expected one text")
    return answer


def _benchmark(task: str) -> str | None:
    from finepruner_lmms.benchmarks import BENCHMARKS

    ours = task.removeprefix("fp_")
    return ours if task.startswith("fp_") and ours in BENCHMARKS else TASKS.get(task)


def _check_whole(samples: list[dict[str, Any]], count: Any, file: Path) -> None:
    expected = count.get("effective") if isinstance(count, dict) else None
    if isinstance(expected, int) and expected != len(samples):
        problem = f"holds {len(samples)} samples, but {expected} questions were asked"
        raise ForeignError(f"{file}: {problem}; it is not whole, or of another run")


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ForeignError(f"{file}: not readable as JSON: {first_line(error)}") from None
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict):
        raise ForeignError(f"{file}: holds no results of lmms-eval (an object with the key 'results')")
    return value


def _part(results: dict[str, Any], name: str, file: Path) -> dict[str, Any]:
    value = results.get(name, {})
    if value is not None and not isinstance(value, dict):
        raise ForeignError(f"{file}: {name}: got {show(value)}; expected an object")
    return value or {}


def _arguments(results: dict[str, Any], config: dict[str, Any]) -> str:
    arguments = config.get("model_args") or ""
    if isinstance(arguments, dict):
        arguments = ",".join(f"{name}={value}" for name, value in arguments.items())
    source = results.get("model_source") or config.get("model") or ""
    parts = [part for part in str(arguments).split(",") if not _SECRET.search(part.partition("=")[0])]
    told = ",".join("[key]" if has_shape_of_key(part) else part for part in parts)
    return f"{source}({told})" if source else told


def _numbers(scores: Any) -> dict[str, float]:
    """The metrics that are finite numbers."""
    given = scores if isinstance(scores, dict) else {}
    plain = {str(k): v for k, v in given.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {name: float(value) for name, value in plain.items() if math.isfinite(value)}
