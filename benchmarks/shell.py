"""How long the command line takes: what computes nothing, a large plan, and a run down to its first token.

    python benchmarks/shell.py [--repeat 5] [--study runs/quickstart --config configs/quickstart.yaml] [--cold]

Each command is a process of its own, as a user starts it; the median and the range of `--repeat` runs in seconds, as
JSON, one object per command. Commands take turns, so that a noisy minute meets all of them. A study is one that is
finished, of this code; without one, its commands are left out. `--cold` also starts a fresh run of the embedded
model: seconds from `run` to its first cell's first answers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLD = "name: cold\nmodel: {pretrained: demo}\ndata: demo\ntasks: [pope]\nlimit: 2\nmethods: [vanilla]\n"
TASKS = "[vqav2, gqa, vizwiz, sqa, textvqa, pope, mme, mmbench, mmbench_cn, mmvet]"


def large_study(target: Path) -> Path:
    """A matrix file of 1000 rows and ten tasks."""
    lines = ["name: large", "model: {pretrained: demo}", "data: demo", "judge: exact", f"tasks: {TASKS}", "methods:"]
    lines.append(f"  - {{method: random, budget: {list(range(60, 185))}, seed: {list(range(8))}}}")
    file = target / "large.yaml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def seconds(*arguments: str) -> float:
    """Of one command."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "finepruner_lmms.cli", *arguments], capture_output=True, text=True)
    taken = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return taken


def seconds_to_first_token(folder: Path) -> float:
    """From `run` to the first report that questions of a cell are answered."""
    config, output = folder / "cold.yaml", folder / "out"
    config.write_text(COLD, encoding="utf-8")
    command = [sys.executable, "-m", "finepruner_lmms.cli", "run", str(config), "--output", str(output)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for events in output.glob("launches/*/events.jsonl"):
                if '"progress"' in events.read_text(encoding="utf-8"):
                    taken = time.perf_counter() - began
                    process.wait()
                    return taken
            time.sleep(0.02)
        raise SystemExit(f"the run ended without an answer: {process.stderr.read() if process.stderr else ''}")


def show(command: str, taken: list[float]) -> None:
    """One line of JSON."""
    found = {"median": statistics.median(taken), "least": min(taken), "most": max(taken)}
    rounded = {name: round(value, 3) for name, value in found.items()}
    sys.stdout.write(json.dumps({"command": command, **rounded, "runs": len(taken)}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--study", type=Path, help="the directory of a finished run")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="the matrix file of that run")
    parser.add_argument("--cold", action="store_true", help="also a fresh run, to its first token")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands: dict[str, tuple[str, ...]] = {
            "--help": ("--help",),
            "judge --help": ("judge", "--help"),
            "prepare --help": ("prepare", "--help"),
            "plan, nothing done": ("plan", arguments.config, "--output", str(folder / "none")),
            "plan, 10,000 cells": ("plan", str(large_study(folder)), "--output", str(folder / "none")),
        }
        if arguments.study is not None:
            study = str(arguments.study)
            commands |= {
                "plan, all done": ("plan", arguments.config, "--output", study),
                "status": ("status", study),
                "table": ("table", study),
                "second run": ("run", arguments.config, "--output", study),
            }
        taken: dict[str, list[float]] = {command: [] for command in commands}
        for command in commands.values():  # what is compiled or remembered once
            seconds(*command)
        for _ in range(arguments.repeat):
            for name, command in commands.items():
                taken[name].append(seconds(*command))
        for name, found in taken.items():
            show(name, found)
    if arguments.cold:
        found = []
        for _ in range(arguments.repeat):
            with tempfile.TemporaryDirectory() as name:
                found.append(seconds_to_first_token(Path(name)))
        show("run, to the first token", found)


if __name__ == "__main__":
    main()
