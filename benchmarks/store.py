"""How long an output directory takes to be shown: `status` and `table` of 1,000 cells with 10,000 samples each.

    python benchmarks/store.py FOLDER [--cells 1000] [--samples 10000]

Writes such a directory into FOLDER, which is made (2 GB), as a worker writes it; what is there already is kept. Then
each command is run as a process of its own, with what was verified remembered, and once without.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.matrix.plan import Cell, Method, Study
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.sections import ModelSection
from finepruner_lmms.matrix.store import Store

TASKS = ("gqa", "textvqa", "pope", "mme")
VARIANTS = 3
ROUNDS = 5


def study_of(cells: int) -> Study:
    """Rows of one method at different budgets, each on all tasks."""
    rows = tuple(
        Method(method="vanilla", budget=None, parameters={}, given={})
        if number == 0
        else Method(method="fastv", budget=number + 1, parameters={"layer": 2, "rows": "raw"}, given={"layer": 2})
        for number in range(-(-cells // len(TASKS)))
    )
    made = []
    for number, row in enumerate(rows):
        for task in TASKS:
            identity = Identity(
                settings=f"{task}-{number}", dtype="float16", checkpoint="liuhaotian/llava-v1.5-7b@0123456789ab",
                libraries={"torch": "2.11.0", "transformers": "5.18.0", "numpy": np.__version__, "pillow": "12.0.0"},
                engine=dict.fromkeys(("engine", "heads", "lmms", "matrix", "ops", "pruners"), "0123456789ab"),
                method={row.method: "0123456789ab"}, task="0123456789ab", data="lmms-lab/GQA@0123456789ab",
            )  # fmt: skip
            made.append(
                Cell(
                    id=identity.id, slug=f"{task}-{row.method}-{row.budget}", row=number, task=task, method=row,
                    model=ModelSection(), limit=None, data="hub", submission=False, identity=identity,
                )
            )  # fmt: skip
    layers, tokens = 32, 576
    return Study(
        name="scale", model="llava-1.5-7b", num_layers=layers, num_visual_tokens=tokens, tasks=TASKS, rows=rows,
        cells=tuple(made[:cells]),
    )  # fmt: skip


def score_of(task: str, number: int, right: bool) -> Any:
    """What a task logs for a question."""
    if task == "pope":
        entry: dict[str, Any] = {"question_id": str(number), "score": float(right)}
        kind = ("random", "popular", "adversarial")[number % 3]
        return entry | {"prediction": "yes" if right else "no", "ground_truth": "yes", "category": kind}
    if task == "mme":
        return {
            "question_id": f"image/{number // 2}.png",
            "category": f"kind {number // 2 % 10}",
            "score": float(right),
        }
    return float(right)


@functools.cache
def answers(task: str, variant: int, samples: int) -> tuple[list[Any], dict[str, Any]]:
    """Samples drawn at random, and the figures that they give."""
    benchmark = BENCHMARKS[task]
    right = np.random.default_rng(variant).random(samples) < 0.6 + 0.1 * variant
    lines: list[Any] = [
        {
            "doc_id": number, "image": f"{number // 4:012d}", "target": "a word", "answer": "some words of an answer",
            "score": score_of(task, number, bool(hit)),
        }
        for number, hit in enumerate(right)
    ]  # fmt: skip
    metric = benchmark.metric.partition(",")[0]
    logged = [line | {metric: line["score"]} for line in lines]
    value, percent, error = benchmark.figures(logged, {line["doc_id"]: line["image"] for line in lines})
    return lines, {"metrics": {benchmark.metric: value}, "percent": percent, "standard_error": error}


def write_cell(store: Store, cell: Cell, samples: int) -> None:
    """As a worker does it; a few variants of answers serve all cells, since only how many there are costs time."""
    lines, figures = answers(cell.task, cell.row % VARIANTS, samples)
    about = {"id": cell.id, "spec": cell.spec(), "answered": samples, "expected": samples, "seconds": 60.0}
    cost = {"questions": samples, "text_tokens": 55.0, "visual_tokens": 64.0, "final_visual_tokens": 30.0}
    cost |= {"macs_2": 4.75e11, "macs_3": 5.45e11, "kv_bytes": 1463808.0}
    folder = store.cell_dir(cell)
    folder.mkdir(parents=True, exist_ok=True)
    write_result(folder, about | figures | {"cost": cost}, lines)


def seconds_of(*arguments: object) -> float:
    """A command as a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "finepruner_lmms.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Write what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    options = parser.parse_args()
    store, study = Store(options.folder), study_of(options.cells)
    store.save_study(study)
    for number, cell in enumerate(study.cells):
        if not (store.cell_dir(cell) / "result.json").exists():
            write_cell(store, cell, options.samples)
        if number % 100 == 99:
            print(f"{number + 1} cells are there", file=sys.stderr)
    found: dict[str, Any] = {}
    for name in ("status", "table"):
        taken = [seconds_of(name, options.folder) for _ in range(ROUNDS)]
        found[name] = {
            "median": round(statistics.median(taken), 2),
            "spread": [round(min(taken), 2), round(max(taken), 2)],
        }
    for file in options.folder.glob("cells/*/verified.json"):
        file.unlink()
    found["status, nothing remembered"] = round(seconds_of("status", options.folder), 1)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
