"""A made-up study for pages: several tasks, budgets, strategies and seeds, with costs, speeds and what was selected."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from studies import cell, method
from studies import study as planned

from finepruner_lmms.matrix.attempts import begin_attempt
from finepruner_lmms.matrix.plan import Cell, Method
from finepruner_lmms.matrix.results import write_result
from finepruner_lmms.matrix.store import Store

BUDGETS, IMAGES = (128, 64), 40
TASKS = {"gqa": "exact_match,none", "textvqa": "exact_match,none"}
_GOOD = {"vanilla": 0.95, "fastv": 0.85, "visionzip": 0.9, "random": 0.6, "finepruner": 0.88}
_STRATEGIES = {"sum": -0.05, "sparsity": 0.04}


def rows() -> list[Method]:
    """vanilla, and by budget: random with two seeds, two methods, and a head study of two strategies and two sizes."""
    found = [method("vanilla")]
    for budget in BUDGETS:
        found += [method("random", budget, seed=seed) for seed in (0, 1)]
        found += [method(name, budget) for name in ("fastv", "visionzip")]
        found += [
            method("finepruner", budget, head_strategy=name, heads=heads) for name in _STRATEGIES for heads in (2, 4)
        ]
    return [*found, method("finepruner", 64, head_strategy="consensus")]


def make(store: Store, name: str = "made-up", text: str = "", answer: str = "a cat") -> Store:
    """The study in a store. `text` becomes part of a row and of every question; `answer` is what two rows answer."""
    found = rows()
    if text:
        found.append(method(text, 64, **{"note": text}))
    cells = []
    for task, metric in TASKS.items():
        for number, row in enumerate(found):
            cells.append(cell(f"{task}{number}", task, number, row, limit=IMAGES))
            _write(store, cells[-1], number, row, metric, text, answer if number < 2 else "a cat")
    store.save_study(planned(found, cells, name=name))
    return store


def _write(store: Store, one: Cell, number: int, row: Method, metric: str, text: str, answer: str) -> None:
    tokens = 576 if row.budget is None else int(row.budget)
    share = _GOOD.get(row.method, 0.7) - 0.002 * (192 - min(tokens, 192)) * (row.method != "vanilla")
    share += _STRATEGIES.get(str(row.given.get("head_strategy")), 0) + 0.02 * (row.given.get("heads") == 4)
    draw = np.random.default_rng(7).random(IMAGES) * 0.9 + 0.1 * np.random.default_rng(number).random(IMAGES)
    right = draw < share
    samples = [
        {
            "doc_id": i,
            "image": f"i{i}",
            "question": f"What is {i}? {text}",
            "target": f"a dog {text}",
            "answer": answer if i < 2 else text,
        }
        | {"score": float(hit)}
        for i, hit in enumerate(right)
    ]
    spent = 0.03 + tokens / 8000
    result = {"id": one.id, "metrics": {metric: right.mean()}, "percent": 100 * right.mean(), "standard_error": 2.0}
    result |= {"answered": IMAGES, "expected": IMAGES, "seconds": 1, "spec": {"task": one.task}}
    result["cost"] = {"visual_tokens": tokens, "macs_2": 4e9 + 5e6 * tokens, "macs_3": 4e9 + 6e6 * tokens}
    result["cost"] |= {"final_visual_tokens": tokens, "kv_bytes": 2**19 * (40 + tokens)}
    conditions = {"device": "a made-up GPU", "dtype": "float16", "processes": 1, "batch_size": 8, "execution": "graphs"}
    result["speed"] = {"questions": IMAGES, "batches": 5, "seconds": IMAGES * spent, "conditions": conditions}
    result["speed"] |= {"questions_per_second": 1 / spent, "model_questions_per_second": 1.1 / spent}
    result["speed"] |= {"first_token_p50": spent, "first_token_p95": 1.2 * spent, "seconds_per_token": 0.01}
    result["provenance"] = {"versions": {"torch": "2.11.0"}, "python": "3.11.7", "device": "a made-up GPU"}
    folder = store.cell_dir(one)
    begin_attempt(folder, "1")
    write_result(folder, result, samples)
    if row.method == "finepruner":
        lines = [_selected(one.task, doc, row) for doc in range(IMAGES)]
        (folder / "selections-rank0.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def _selected(task: str, doc: int, row: Method) -> dict[str, Any]:
    rng = np.random.default_rng([doc, len(row.label)])
    count = int(row.given.get("heads", 4))
    line = {"task": f"fp_{task}", "doc_id": doc, "layer": 2, "heads": rng.permutation(8)[:count].tolist()}
    if row.given.get("head_strategy") != "consensus":
        return line
    line |= {"qualities": {"sum": rng.random(), "sparsity": rng.random()}, "complexity": rng.random()}
    return line | {"n_heads": count, "share_diversity": rng.random(), "branch": "gap" if doc % 3 else "high"}
