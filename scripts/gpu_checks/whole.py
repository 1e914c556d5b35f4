"""What users start: the benchmark of speed and a small study."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finepruner_lmms.bench import record as bench_record
from finepruner_lmms.bench.asking import Asking
from finepruner_lmms.bench.measure import Bench
from finepruner_lmms.bench.method import Method
from finepruner_lmms.bench.prompts import random_prompts
from finepruner_lmms.bench.roofline import measure_device
from gpu_checks.run import Run, Skipped


def bench(run: Run) -> None:
    """`finepruner bench` at these sizes, a short one; its table and picture: `finepruner bench --redraw`."""
    found_device = measure_device(run.device, run.dtype, 2)
    methods = [Method("vanilla", run.pruner("vanilla")), Method("fastv 64", run.pruner("fastv", 64))]
    rounds, tokens, executions = (1, 3, ("auto",)) if run.quick else (2, 8, ("eager", "graphs"))
    figures, prompts = [], None
    for batch in run.within((1,) if run.quick else (1, 32)):
        prompts = random_prompts(run.model, batch, 60)
        figures += Bench(Asking(run.model), tokens, rounds, random_weights=True).measure(methods, executions, prompts)
    assert prompts is not None
    result = bench_record.Record(
        run.shape, True, prompts.text, prompts.visual, tokens, rounds, found_device, tuple(figures)
    )
    for one in figures:
        run.say(
            method=one.method, execution=one.execution, batch=one.batch, first_ms=round(1e3 * one.first.median, 2),
            ms_a_token=round(1e3 * one.step.median, 2), per_second=round(one.per_second.median, 2),
            natural=round(one.natural.median, 2), waits=one.waits and [one.waits.first, one.waits.step],
        )  # fmt: skip
    if run.out is not None:
        bench_record.save(result, run.out.with_name("bench.json"))


def sweep(run: Run) -> None:
    """Two cells of the demo by `accelerate launch`, as a study runs them."""
    for library in ("lmms_eval", "accelerate", "datasets"):
        if importlib.util.find_spec(library) is None:
            raise Skipped(f"{library} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "sweep.yaml"
        config.write_text(
            "name: sweep\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\nlimit: 8\n"
            "methods: [vanilla, {method: fastv, budget: 64}]\nlaunch: {batch_size: 4}\n"
        )
        started = time.monotonic()
        command = [sys.executable, "-m", "finepruner_lmms.cli", "run", str(config), "--output", f"{folder}/out"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            printed, errors = process.communicate(timeout=80)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its worker
            printed, errors = process.communicate(timeout=20)
            errors = f"stopped after 80 s; {errors}"
    run.say(exit_status=process.returncode, seconds=round(time.monotonic() - started, 1), tail=printed[-600:])
    found = "done" if process.returncode == 0 else errors.strip()[-200:]
    run.conclude("a small sweep by accelerate launch", "runs", found, process.returncode == 0)
