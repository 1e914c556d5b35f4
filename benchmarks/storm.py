"""Random SIGKILLs over a real sweep: what is lost, what is computed twice, what is left behind.

    python benchmarks/storm.py --mode resident --kills 30

Runs a small sweep of the demo model undisturbed, and then again while processes of it (the runner, a launcher, a
worker, one rank) are killed at random moments; the run is started again until all cells are done. Prints one JSON line:
whether samples, scores and costs are those of the undisturbed run, how many answers were computed again per kill, and
how long processes outlived a killed runner. Exit status 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from finepruner_lmms.matrix.launch import processes_of

MATRIX = """\
name: storm
model: {{pretrained: demo}}
data: demo
tasks: [gqa, mme]
limit: {limit}
monitor: true
methods:
  - {{method: fastv, budget: [128, 64]}}
launch: {{batch_size: {batch}, processes: 2, mode: {mode}, fan_out: {fan_out}}}
"""
COMPARED = ("metrics", "percent", "standard_error", "cost", "answered", "expected")


def main() -> int:
    """Kill, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=("resident", "packed", "isolated"), default="resident")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--limit", type=int, default=64, help="questions per task")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--fan-out", default="off")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the runs; temporary where it is not given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = storm(asked, asked.out or Path(temporary))
    print(json.dumps(found))
    return 0 if found["equal"] and not found["left behind"] else 1


def storm(asked: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The undisturbed run, the disturbed one, and how they differ."""
    draw = random.Random(asked.seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / f"{asked.mode}.yaml"
    config.write_text(MATRIX.format(limit=asked.limit, batch=asked.batch, mode=asked.mode, fan_out=asked.fan_out))
    calm, rough = folder / f"calm-{asked.mode}", folder / f"rough-{asked.mode}"
    subprocess.run(_command(config, calm), check=True, stdout=subprocess.DEVNULL)
    victims: Counter[str] = Counter()
    longest, runs = 0.0, 0
    while victims.total() < asked.kills:
        run = subprocess.Popen(_command(config, rough), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        runs += 1
        while run.poll() is None and victims.total() < asked.kills:
            _wait(rough, run, draw)
            if run.poll() is not None:
                break
            kind, pid = _victim(rough, run, draw)
            with_runner = pid == run.pid
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            victims[kind] += 1
            print(f"kill {victims.total()}: {kind}", file=sys.stderr, flush=True)
            if with_runner:
                run.wait()
                longest = max(longest, _until_none(rough))
        run.wait()
        if run.returncode == 0:  # done before all kills were made: the rest hits a sweep that begins anew
            _differences(calm, rough)
            if victims.total() < asked.kills:
                rough = folder / f"rough-{asked.mode}-{runs}"
    for _ in range(5):
        if subprocess.run(_command(config, rough), stdout=subprocess.DEVNULL).returncode == 0:
            break
    left = processes_of(rough / "launches")
    differ = [d for part in folder.glob(f"rough-{asked.mode}*") for d in _differences(calm, part)]
    again = sum(_computed(part) for part in folder.glob(f"rough-{asked.mode}*")) - len(
        list(folder.glob(f"rough-{asked.mode}*"))
    ) * _computed(calm)
    return {
        "mode": asked.mode,
        "kills": dict(victims),
        "runs": runs + 1,
        "equal": not differ,
        "differences": differ,
        "computed again": again,
        "computed again per kill": round(again / victims.total(), 2),
        "at most": 2 * asked.batch,
        "seconds that processes outlived a killed runner": round(longest, 2),
        "left behind": left,
    }


def _command(config: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "finepruner_lmms.cli", "run", str(config), "--output", str(output)]


def _wait(output: Path, run: subprocess.Popen[bytes], draw: random.Random) -> None:
    """Until a random moment; two of three times one at which questions are being answered."""
    if draw.random() < 1 / 3:
        until = time.monotonic() + draw.uniform(0.5, 20)
        while time.monotonic() < until and run.poll() is None:
            time.sleep(0.05)
        return
    before = _said(output)
    while _said(output) == before and run.poll() is None:
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 2))


def _said(output: Path) -> int:
    """How many reports of progress there are."""
    return sum(file.read_text().count('"progress"') for file in output.glob("launches/*/events.jsonl"))


def _victim(output: Path, run: subprocess.Popen[bytes], draw: random.Random) -> tuple[str, int]:
    processes = processes_of(output / "launches")
    pid = draw.choice([run.pid, *processes])
    if pid == run.pid:
        return "runner", pid
    try:
        parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone", pid
    rank = next((part[5:].decode() for part in parts if part.startswith(b"RANK=")), None)
    return ("launcher" if b"accelerate" in words else "worker") if rank is None else f"rank {rank}", pid


def _until_none(output: Path) -> float:
    began = time.monotonic()
    while processes_of(output / "launches") and time.monotonic() - began < 60:
        time.sleep(0.05)
    return time.monotonic() - began


def _differences(calm: Path, rough: Path) -> list[str]:
    found = []
    for expected in calm.glob("cells/*/result.json"):
        other = rough / expected.relative_to(calm)
        if not other.exists():
            found.append(f"{expected.parent.name}: missing")
            continue
        one, two = json.loads(expected.read_text()), json.loads(other.read_text())
        found += [f"{expected.parent.name}: {name}" for name in COMPARED if one.get(name) != two.get(name)]
        if (expected.parent / "samples.jsonl").read_bytes() != (other.parent / "samples.jsonl").read_bytes():
            found.append(f"{expected.parent.name}: samples")
    return found


def _computed(output: Path) -> int:
    """How many questions were answered by the model: each writes down what was kept of its image."""
    return sum(file.read_bytes().count(b"\n") for file in output.glob("cells/*/selections-rank*.jsonl"))


if __name__ == "__main__":
    sys.exit(main())
