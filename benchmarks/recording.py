"""What it costs to record what happens to the visual tokens of questions: time while cells run, and bytes afterwards.

    python benchmarks/recording.py [--questions 200] [--batch 8] [--rounds 20]       # demo model; on a GPU, too
    python benchmarks/recording.py --model llava-hf/llava-1.5-7b-hf --data ROOT

The worst case: every question of a cell is recorded. A cell runs with and without in turns, in one process, through
lmms-eval's evaluator with a journal, as a worker of a study runs it. Prints JSON: by method the mean of the paired
ratios of seconds (this process's processor time `cpu`, and the `clock`'s) with its 95 % interval over rounds, and bytes
per question. The ratios need a quiet machine; `inside`, the share of the processor time of a cell that is spent in the
recorder's own functions, does not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scipy.stats import t as student

METHODS: dict[str, str] = {
    "vanilla": "vanilla",
    "fastv": "{method: fastv, budget: 128}",
    "finepruner, 8 heads": "{method: finepruner, budget: 128, heads: 8}",
    "sparsevlm": "{method: sparsevlm, budget: 128}",
    "visionzip": "{method: visionzip, budget: 128}",
}


def measured(
    model: str, data: str, task: str, questions: int, batch: int, rounds: int, methods: list[str]
) -> dict[str, Any]:
    """By method: ratios of time with and without, and bytes."""
    from lmms_eval.tasks import TaskManager

    from finepruner_lmms.data.task_folders import folder as task_folder
    from finepruner_lmms.lmms import answering
    from finepruner_lmms.lmms.model import LlavaFinePruner
    from finepruner_lmms.lmms.recorder import Recorder
    from finepruner_lmms.matrix.cells import expand
    from finepruner_lmms.matrix.config import load_matrix
    from finepruner_lmms.matrix.evaluate import evaluate_cell
    from finepruner_lmms.matrix.traces import write_records

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "study.yaml"
        rows = "".join(f"  - {METHODS[name]}\n" for name in methods)
        head = f"name: s\nmodel: {{pretrained: {model}}}\ndata: {data}\ntasks: [{task}]\nlimit: {questions}\n"
        file.write_text(f"{head}methods:\n{rows}", encoding="utf-8")
        matrix = load_matrix(file)
        lm = LlavaFinePruner(**matrix.file.model.model_dump(exclude_none=True), batch_size=batch)
        folder = str(task_folder(matrix.file.data, False, questions))
        manager = TaskManager(include_path=folder, include_defaults=False, model_name="llava_finepruner")

        def run(cell: Any, name: str, recorded: int) -> tuple[dict[str, float], Any]:
            lm.recorder = replace(Recorder(), questions=recorded)
            attempt = Path(place) / name
            inside = Inside()
            clock, cpu = time.perf_counter(), time.process_time()
            with patch.object(answering, "records", inside.timed(answering.records)):
                found = evaluate_cell(lm, manager, cell, attempt, attempt / "cache")
            assert found is not None
            if recorded:
                about = inside.timed(write_records)(attempt, found[0].traces)
                assert about.questions == found[0].answered
            times = {"cpu": time.process_time() - cpu, "clock": time.perf_counter() - clock}
            return times | {"inside": inside.seconds / times["cpu"]}, found

        result = {}
        for label, cell in zip(methods, expand(matrix), strict=True):
            run(cell, f"{label} warm", questions)
            pairs = []
            for number in range(rounds):
                order = (0, questions) if number % 2 else (questions, 0)
                pairs.append({most: run(cell, f"{label} {number} {most}", most)[0] for most in order})
            _, found = run(cell, f"{label} size", questions)
            size = (Path(place) / f"{label} size" / "traces.jsonl.gz").stat().st_size
            result[label] = {
                kind: summary([pair[questions][kind] / pair[0][kind] for pair in pairs]) for kind in ("cpu", "clock")
            } | {
                "inside": summary([pair[questions]["inside"] for pair in pairs]),
                "seconds without": statistics.median(pair[0]["clock"] for pair in pairs),
                "bytes per question": size / found[0].answered,
            }
        return {"device": lm.origin.device, "questions": questions, "batch": batch, "methods": result}


class Inside:
    """The processor seconds spent in functions."""

    seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its seconds added up."""

        def called(*given: Any) -> Any:
            started = time.process_time()
            try:
                return function(*given)
            finally:
                self.seconds += time.process_time() - started

        return called


def summary(ratios: list[float]) -> dict[str, float]:
    """The geometric mean and its 95 % interval over rounds, by Student's t; without one for a single round."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return {"ratio": math.exp(middle)}
    half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"ratio": math.exp(middle), "low": math.exp(middle - half), "high": math.exp(middle + half)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--task", default="gqa")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    given = vars(parser.parse_args())
    print(json.dumps(measured(**given), indent=1))
