"""A finished study with made-up answers, for what is shown of studies: the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from studies import cell, method, study

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.engine.cost import DecoderSizes, cache_bytes, published_macs
from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Cell, Method
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store

ROWS = [
    method("vanilla"),
    method("random", 128, seed=0),
    method("random", 128, seed=1),
    method("fastv", 128),
    method("divprune", 128),
    method("fastv", 64),
    method("divprune", 64),
    method("cdpruner", 64, relevance="embedding"),
]
RIGHT = (0.9, 0.6, 0.62, 0.86, 0.87, 0.72, 0.8, 0.84)
"""How many questions a row answers right; the last one was not asked all tasks."""
TASKS = {"gqa": 60, "pope": 48, "mme": 24}
"""Images; each has four questions, MME's two."""
WIDTH, LAYERS, TEXT = 4096, 32, 40
SIZES = DecoderSizes(WIDTH, 11008, WIDTH, WIDTH)


def write_board(root: Path, rows: list[Method] | None = None, name: str = "study", shift: float = 0.0) -> Store:
    """The study in a folder. `shift` makes the pruned rows of another study better or worse."""
    chosen = ROWS if rows is None else rows
    store, cells = Store(root), []
    for task, images in TASKS.items():
        for number, row in enumerate(chosen):
            share = RIGHT[ROWS.index(row)] + (shift if row.method != "vanilla" else 0.0)
            cells.append(cell(f"{name}-{task}{number}", task, number, row))
            if (row.method, task) != ("cdpruner", "mme"):
                _write(store, cells[-1], images, share)
    store.save_study(study(chosen, cells, LAYERS, name).model_copy(update={"model": "llava-hf/llava-1.5-7b-hf"}))
    return store


def _write(store: Store, one: Cell, images: int, share: float) -> None:
    samples = _samples(one.task, images, share)
    benchmark = BENCHMARKS[one.task]
    metric = benchmark.metric.partition(",")[0]
    logged = [{**sample, metric: sample["score"]} for sample in samples]
    result = {"id": one.id, "metrics": {benchmark.metric: benchmark.value(logged)}, "spec": {"task": one.task}}
    result |= {"percent": benchmark.percent(logged), "standard_error": 2.0, "seconds": 1, "cost": _cost(one.method)}
    result |= {"answered": len(samples), "expected": len(samples), "speed": _speed(one.method, len(samples))}
    begin_attempt(store.cell_dir(one), "1")
    write_result(store.cell_dir(one), result, samples)


def _samples(task: str, images: int, share: float) -> list[dict[str, Any]]:
    """Questions of images that are hard for all rows alike; a row answers those right that are easier than `share`."""
    each = 2 if task == "mme" else 4
    rng = np.random.default_rng(len(task))
    hardness = (rng.random(images)[:, None] + 2 * rng.random((images, each))) / 3
    edge = np.quantile(hardness, share)
    noise = np.random.default_rng(round(1e4 * share)).random(hardness.shape) < 0.03
    right = (hardness <= edge) ^ noise
    lines = []
    for image in range(images):
        for place in range(each):
            hit, number = bool(right[image, place]), each * image + place
            true = "yes" if place % 2 == 0 else "no"
            said = true if hit else {"yes": "no", "no": "yes"}[true]
            score: Any = float(hit)
            if task == "pope":
                kind = ("random", "popular", "adversarial")[image % 3]
                score = {"question_id": number, "score": float(hit), "prediction": said, "ground_truth": true}
                score |= {"category": kind}
            elif task == "mme":
                score = {"question_id": f"i{image}", "category": ("existence", "color")[image % 2], "score": float(hit)}
            lines.append({"doc_id": number, "image": f"{task}{image}", "target": true, "answer": said, "score": score})
    return lines


def _cost(row: Method) -> dict[str, float]:
    tokens = 576 if row.budget is None else int(row.budget)
    lengths = [tokens + TEXT] * LAYERS
    return {
        "questions": 100,
        "text_tokens": float(TEXT),
        "visual_tokens": float(tokens),
        "final_visual_tokens": float(tokens),
        "macs_2": float(published_macs(SIZES, lengths, 2)),
        "macs_3": float(published_macs(SIZES, lengths, 3)),
        "kv_bytes": float(cache_bytes(SIZES, lengths)),
    }


def _speed(row: Method, questions: int) -> dict[str, Any]:
    tokens = 576 if row.budget is None else int(row.budget)
    rate = 20 - tokens / 50
    conditions = {"device": "NVIDIA A100", "dtype": "float16", "processes": 1, "batch_size": 8, "execution": "graphs"}
    return {
        "questions": questions, "batches": 30, "seconds": questions / rate, "questions_per_second": rate,
        "model_questions_per_second": rate, "first_token_p50": 0.02 + tokens / 1e4,
        "first_token_p95": 0.05 + tokens / 1e4, "seconds_per_token": 0.02, "peak_bytes": 16 * 2**30, "waiting": 0.01,
        "image_hits": 0.0, "conditions": conditions,
    }  # fmt: skip
