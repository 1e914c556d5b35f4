"""Train the demo model from nothing: `python scripts/train_demo.py --out finepruner_lmms/demo/checkpoint`.

Five phases, each saved under `--work` when it is done, the long ones also every 50 steps; a run that was stopped goes
on from there (`--fresh` starts over). Times on two CPU cores are in docs/demo_model.md.

`--world hard` trains a model of the demanding world instead, by other phases, of which none knows where things are
(demo_training/hard/phases.py). docs/hard_world.md says what the model in the package can do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # two threads that wait for each other by spinning slow each other down
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

sys.path.insert(0, str(Path(__file__).parent))

from demo_training.hard import phases
from demo_training.hard.phases import TOWERS
from demo_training.language import Plan, Trainer, grow
from demo_training.sizes import DEEP, SHALLOW, build
from demo_training.tower import encode, train_tower

from finepruner_lmms.demo.vocabulary import SPECIAL, build_processor

PLANS = {
    "lookups": Plan(
        "lookups",
        steps=700,
        rate=2e-3,
        floor=0.3,
        batch=24,
        questions=10,
        probe=0.5,
        emphasis={"count": 1.4, "number": 1.2, "exist": 1.3, "choice_zh": 1.2},
    ),
    "operations": Plan(
        "operations",
        steps=500,
        rate=1.5e-3,
        floor=0.1,
        batch=24,
        questions=10,
        probe=0.5,
        easy=0.75,
        emphasis={"digit": 2.0, "read": 2.0, "count": 1.4, "number": 1.5, "exist": 1.5},
    ),
    "boxes": Plan(
        "boxes",
        steps=160,
        rate=1.5e-3,
        floor=0.1,
        batch=24,
        questions=10,
        probe=0.5,
        instructed=0.7,
        easy=1.0,
        emphasis={"digit": 8.0, "read": 2.0, "count": 1.5, "number": 2.0, "exist": 2.0},
    ),
    "deep": Plan(
        "deep",
        steps=200,
        rate=8e-4,
        floor=0.03,
        batch=16,
        questions=8,
        probe=0.15,
        mixed=True,
        instructed=0.85,
        easy=0.75,
        emphasis={"digit": 2.0, "count": 3.0, "number": 3.0, "exist": 2.0},
    ),
}
ENCODED = 6000  # training scenes whose tower features are kept


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--work", type=Path, default=Path(".cache/demo_training"), help="where phases are saved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--world", choices=("easy", "hard"), default="easy")
    parser.add_argument("--tower", choices=sorted(TOWERS), default="small", help="of the hard world's model")
    parser.add_argument("--device", default="cpu", help="for the hard world's model")
    parser.add_argument("--fresh", action="store_true", help="forget finished phases")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work = arguments.work / f"seed{arguments.seed}"
    if arguments.world == "hard":
        work = arguments.work / f"hard_{arguments.tower}{arguments.seed}"
    work.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        for file in work.iterdir():
            file.unlink()
    if arguments.world == "hard":
        phases.train(work, arguments.out, arguments.seed, arguments.tower, arguments.device, _say)
        return
    times = train(work, arguments.seed, arguments.out)
    print(json.dumps({"seconds": {name: round(seconds) for name, seconds in times.items()}}), flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def train(work: Path, seed: int, out: Path) -> dict[str, float]:
    """All phases; returns the seconds of each, also of those that an earlier run finished."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    model = build(len(tokenizer), ids, SHALLOW, seed)
    times_file = work / "times.json"
    times: dict[str, float] = json.loads(times_file.read_text()) if times_file.exists() else {}

    def phase(name: str, target: torch.nn.Module, run: Callable[[], None]) -> None:
        file = work / f"{name}.pt"
        if file.exists():
            _say(f"{name}: done before")
            target.load_state_dict(torch.load(file, weights_only=True))
            return
        started = time.monotonic()
        run()
        times[name] = time.monotonic() - started
        torch.save(target.state_dict(), file)
        times_file.write_text(json.dumps(times))
        _say(f"{name}: {times[name]:.0f} s")

    phase("tower", model.model.vision_tower, lambda: train_tower(model, seed, _say))
    data = encode(model, "train", 20_000, ENCODED, work / "features.pt")
    tuning = encode(model, "tuning", 0, 160)
    trainer = Trainer(model, tokenizer, data, tuning, seed, _say)
    for name in ("lookups", "operations", "boxes"):
        both = torch.nn.ModuleList([model, trainer.probes])
        partial = work / f"{name}.partial.pt"
        phase(name, both, lambda name=name, partial=partial: trainer.run(PLANS[name], partial))  # type: ignore[misc]
        partial.unlink(missing_ok=True)
    probes = trainer.probes
    deep = grow(model, seed)
    assert len(deep.model.language_model.layers) == DEEP
    trainer = Trainer(deep, tokenizer, data, tuning, seed + 1, _say)
    trainer.probes = probes
    _say(f"grown to {DEEP} layers: {trainer.evaluate()}")
    partial = work / "deep.partial.pt"
    phase("deep", torch.nn.ModuleList([deep, trainer.probes]), lambda: trainer.run(PLANS["deep"], partial))
    partial.unlink(missing_ok=True)
    for count in (576, 192, 128, 64, 32):
        _say(f"{count} visual tokens: {trainer.evaluate(count)}")
    deep = deep.to(torch.bfloat16).eval()
    deep.generation_config.max_new_tokens = 8
    deep.save_pretrained(out)
    processor.save_pretrained(out)
    return times


if __name__ == "__main__":
    main()
