"""What a study costs when its cells are answered together, next to the sum of its cells one after the other.

    python benchmarks/fan_out.py study [--task pope] [--limit 16] [--batch 8]   # configs/heads.yaml, on the demo model
    python benchmarks/fan_out.py wide [--questions 2]                           # random, width 1024, 8 layers
    python benchmarks/fan_out.py flops [--study RESULT.json]                    # LLaVA-1.5-7B, exact operations

Each prints JSON. Seconds are of this process's processor time (`cpu`) and of the clock; both ways run in one process
after a warm-up, the cells apart interleaved around the ones together where `--repeat` is above 1. `flops` takes the
share of different rows from the output of `study`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import finepruner_lmms as fp
from finepruner_lmms.engine.cost import DecoderSizes, prefill_flops
from finepruner_lmms.engine.fan_out import answer_together
from finepruner_lmms.pruners import Pruner

ROOT = Path(__file__).parents[1]
STRATEGIES = (
    "max_attention", "attention_range", "sparsity", "top_k_sum", "multi_objective", "graph_based", "hierarchical",
)  # fmt: skip


def head_study(budgets: Sequence[int], heads: Sequence[int]) -> list[Pruner]:
    """The 63 cells: seven strategies, three budgets, three numbers of heads."""
    return [
        fp.build_pruner("finepruner", budget=budget, heads=count, head_strategy=strategy)
        for budget in budgets
        for count in heads
        for strategy in STRATEGIES
    ]


def timed(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of processor time and of the clock, and what came of it."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = run()
    return {"cpu": time.process_time() - cpu, "clock": time.perf_counter() - clock}, result


def compared(apart: Sequence[dict[str, float]], together: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians and ratios."""
    found: dict[str, Any] = {}
    for kind in ("cpu", "clock"):
        one, all_at_once = ([times[kind] for times in runs] for runs in (apart, together))
        found[kind] = {
            "apart": statistics.median(one),
            "together": statistics.median(all_at_once),
            "ratio": statistics.median(all_at_once) / statistics.median(one),
            "ratios": [b / a for a, b in zip(one, all_at_once, strict=True)],
        }
    return found


# -- the study on the demo model --------------------------------------------------------------------------------------


def study(task: str, limit: int, batch: int, repeat: int) -> dict[str, Any]:
    """Through lmms-eval's evaluator, cell by cell, as the worker of a study does."""
    from lmms_eval.tasks import TaskManager

    from finepruner_lmms.data.task_folders import folder as task_folder
    from finepruner_lmms.lmms import together as company
    from finepruner_lmms.lmms.model import LlavaFinePruner
    from finepruner_lmms.matrix.cells import expand
    from finepruner_lmms.matrix.config import load_matrix
    from finepruner_lmms.matrix.evaluate import evaluate_cell, gather
    from finepruner_lmms.matrix.plan import PlannedCell
    from finepruner_lmms.matrix.worker import at_once

    text = (ROOT / "configs" / "heads.yaml").read_text(encoding="utf-8")
    asked = {"tasks": f"tasks: [{task}]", "limit": f"limit: {limit}", "launch": f"launch: {{batch_size: {batch}}}"}
    lines = [asked.get(line.partition(":")[0], line) for line in text.splitlines()]
    seen: list[tuple[list[Pruner], Any]] = []
    real = company.answer_together

    def watched(model: Any, pruners: list[Pruner], inputs: Any, **options: Any) -> Any:
        result = real(model, pruners, inputs, **options)
        seen.append((list(pruners), result))
        return result

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "heads.yaml"
        file.write_text("\n".join(lines), encoding="utf-8")
        matrix = load_matrix(file)
        cells = expand(matrix)
        lm = LlavaFinePruner(**matrix.file.model.model_dump(exclude_none=True), batch_size=batch)
        manager = TaskManager(
            include_path=str(task_folder(matrix.file.data, False, limit)),
            include_defaults=False,
            model_name="llava_finepruner",
        )

        def run(name: str, most: int | None) -> list[Any]:
            planned = [PlannedCell(**dict(cell), path=Path(place) / name / cell.folder) for cell in cells]
            found = []
            for group in at_once(planned, most):
                those = gather(lm, group, False)
                for cell in group:
                    outcome = evaluate_cell(lm, manager, cell, cell.path / "attempt", cell.path / "cache", those)
                    assert outcome is not None
                    found.append([sample["answer"] for sample in outcome[1]])
            return found

        cells, every = cells[:2], cells
        run("warm", None)
        cells = every
        apart, together, same = [], [], True
        for number in range(repeat):
            times, answers = timed(lambda number=number: run(f"apart{number}", 1))  # type: ignore[misc]
            apart.append(times)
            company.answer_together = watched
            times, again = timed(lambda number=number: run(f"together{number}", None))  # type: ignore[misc]
            company.answer_together = real
            together.append(times)
            same = same and answers == again
    about = {"task": task, "limit": limit, "batch": batch, "cells": len(every), "answers_equal": same}
    return about | compared(apart, together) | {"rows": equal_rows(seen)}


def equal_rows(seen: Sequence[tuple[list[Pruner], Any]]) -> dict[str, Any]:
    """How often head choices keep the same tokens: by budget the share of different rows, and who agrees with another.

    `agrees` is the share of questions in which a cell kept what some other cell of its budget kept.
    """
    different, asked = defaultdict(int), defaultdict(int)
    agrees: dict[str, list[bool]] = defaultdict(list)
    for pruners, result in seen:
        kept: dict[Any, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        for pruner, outcome in zip(pruners, result.outcomes, strict=True):
            if pruner.name == "finepruner":
                mask = next(iter(outcome.trace.keep_masks.values())).numpy()
                for row, tokens in enumerate(mask):
                    kept[pruner.budget][row].append(tokens.tobytes())
        for budget, rows in kept.items():
            cells = [pruner for pruner in pruners if pruner.name == "finepruner" and pruner.budget == budget]
            for tokens in rows.values():
                different[budget] += len(set(tokens))
                asked[budget] += len(tokens)
                for pruner, own in zip(cells, tokens, strict=True):
                    named = pruner.parameters()
                    for group in (f"strategy {named['head_strategy']}", f"heads {named['heads']}"):
                        agrees[group].append(tokens.count(own) > 1)
    return {
        "different": {str(budget): different[budget] / asked[budget] for budget in asked},
        "agrees": {group: statistics.fmean(found) for group, found in sorted(agrees.items())},
        "computed": sum(result.rows for _, result in seen),
        "asked": sum(result.asked for _, result in seen),
    }


# -- a random model of width 1024 -------------------------------------------------------------------------------------


def wide(questions: int, repeat: int) -> dict[str, Any]:
    """63 cells at the budgets that eight layers reach with a drop before layer 2: 256, 192 and 160 of 576."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=2752, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=16, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=999, image_seq_length=576)
    model = LlavaForConditionalGeneration(config).eval()
    words = torch.randint(2, 900, (questions, 40))
    ids = torch.cat([words[:, :20], torch.full((questions, 576), 999), words[:, 20:]], dim=1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "vision": fp.encode_images(model, torch.randn(questions, 3, 336, 336)),
    }
    pruners = head_study((256, 192, 160), (4, 8, 12))
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}

    def one_by_one(some: Sequence[Pruner]) -> list[Any]:
        return [fp.generate(model, pruner, inputs, **options).sequences for pruner in some]

    one_by_one(pruners[:1])
    apart, together, same, rows = [], [], True, {}
    for _ in range(repeat):
        times, answers = timed(lambda: one_by_one(pruners))
        apart.append(times)
        times, result = timed(lambda: answer_together(model, pruners, inputs, **options))
        together.append(times)
        same = same and all(torch.equal(a, b.sequences) for a, b in zip(answers, result.outcomes, strict=True))
        rows = {"computed": result.rows, "asked": result.asked}
    sizes = DecoderSizes.of(text)
    bound = flops_ratio(sizes, pruners, 8, 40, {256: 1.0, 192: 1.0, 160: 1.0})
    about = {"questions": questions, "cells": len(pruners), "answers_equal": same, "rows": rows}
    return about | compared(apart, together) | {"prefill_flops_ratio_if_all_rows_differ": bound}


# -- operations -------------------------------------------------------------------------------------------------------


def flops_ratio(
    sizes: DecoderSizes, pruners: Sequence[Pruner], layers: int, words: int, different: dict[int, float]
) -> float:
    """Prefill operations of cells with one drop together, over their sum apart; `different` rows by budget."""
    schedules = [[words + tokens for tokens in pruner.schedule(layers, 576)] for pruner in pruners]
    first = min(next(i for i, n in enumerate(lengths) if n < words + 576) for lengths in schedules)
    scored = (first - 1,)
    apart = sum(prefill_flops(sizes, lengths, scored) for lengths in schedules)
    shared = prefill_flops(sizes, [words + 576] * first)
    rows = sum(2 * lengths[first - 1] * sizes.query_width for lengths in schedules)  # each method's row of attention
    rest = sum(
        prefill_flops(sizes, lengths[first:]) * different[int(pruner.budget)]  # type: ignore[arg-type]
        for pruner, lengths in zip(pruners, schedules, strict=True)
    )
    return (shared + rows + rest) / apart


def flops(result: Path | None) -> dict[str, Any]:
    """The 63 cells on LLaVA-1.5-7B (32 layers of width 4096) with 60 tokens of text."""
    sizes = DecoderSizes(hidden=4096, feed_forward=11008, query_width=4096, key_value_width=4096)
    found: dict[str, Any] = {"all_rows_differ": {}, "as_on_the_demo": None}
    pruners = head_study((192, 128, 64), (8, 16, 24))
    everything = {192: 1.0, 128: 1.0, 64: 1.0}
    found["all_rows_differ"] = {
        "63 cells": flops_ratio(sizes, pruners, 32, 60, everything),
        **{
            f"21 cells at {budget}": flops_ratio(sizes, [p for p in pruners if p.budget == budget], 32, 60, everything)
            for budget in everything
        },
    }
    if result is not None:
        told = json.loads(result.read_text(encoding="utf-8"))["rows"]["different"]
        different = {int(budget): share for budget, share in told.items()}
        found["as_on_the_demo"] = {"different": told, "63 cells": flops_ratio(sizes, pruners, 32, 60, different)}
    return found


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("study", "wide", "flops"))
    parser.add_argument("--task", default="pope")
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--study", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "study":
        found = study(options.task, options.limit, options.batch, options.repeat)
    elif options.what == "wide":
        found = wide(options.questions, options.repeat)
    else:
        found = flops(options.study)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
