"""The phases of a model of the demanding world: contrast on small, middling and whole pictures, then answers on them.

Each is kept every two minutes, and a run that was stopped goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from demo_training.hard.answers import Answerer, AnswerPlan
from demo_training.hard.contrast import Captioned, ContrastPlan, train_contrast
from demo_training.hard.resume import Progress
from demo_training.hard.views import Views, views
from demo_training.language import grow
from demo_training.sizes import SHALLOW, TowerSize, build, tower_of
from finepruner_lmms.demo.hard.vocabulary import build_processor
from finepruner_lmms.demo.vocabulary import SPECIAL

TOWERS = {"small": TowerSize(128, 4, 4), "large": TowerSize(256, 6, 4)}
CONTRAST = (
    ContrastPlan(grid=6, steps=2500, batch=64, rate=1.5e-3, pictures=8000),
    ContrastPlan(grid=12, steps=1200, batch=48, rate=1e-3, pictures=6000),
    ContrastPlan(grid=24, steps=600, batch=32, rate=5e-4, pictures=3000),
)
FIRST = {"exist": 1, "color": 2, "shape": 2, "read": 2, "verify": 1, "pick": 1, "written": 1, "beside": 1, "count": 1}
ANSWERS = (
    AnswerPlan(
        "answers6", grid=6, steps=4000, batch=48, questions=5, rate=2e-3, pictures=8000, instructed=0, weights=FIRST
    ),
    AnswerPlan("answers12", grid=12, steps=3000, batch=32, questions=8, rate=1.5e-3, pictures=6000, system=0.1),
    AnswerPlan(
        "answers24", grid=24, steps=1500, batch=16, questions=10, rate=1e-3, pictures=4000, instructed=0.6, system=0.4
    ),
)
DEEPER = AnswerPlan(
    "deep",
    grid=24,
    steps=1000,
    batch=16,
    questions=10,
    rate=6e-4,
    pictures=4000,
    aligned=0.05,
    instructed=0.85,
    system=0.8,
    kept=(192, 128, 64, 32),
)
_TUNING = 128


def train(work: Path, out: Path, seed: int, tower_size: str, device: str, log: Callable[[str], None]) -> None:
    """All phases that are not done yet; the checkpoint goes to `out`, what is kept of phases to `work`."""
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    processor, size = build_processor(), TOWERS[tower_size]
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    model = build(len(tokenizer), ids, SHALLOW, seed, size).to(device)
    tower, captioned = tower_of(model), Captioned(size.width).to(device)
    for plan in CONTRAST:
        progress = Progress(work / f"contrast{plan.grid}.pt", log)
        train_contrast(tower, captioned, plan, *_pictures(plan, progress), progress)
    for answers in ANSWERS:
        progress = Progress(work / f"{answers.name}.pt", log)
        Answerer(model, tokenizer).train(answers, *_pictures(answers, progress), progress)
    deep = grow(model.to("cpu"), seed, size).to(device)
    progress = Progress(work / f"{DEEPER.name}.pt", log)
    Answerer(deep, tokenizer).train(DEEPER, *_pictures(DEEPER, progress), progress)
    deep = deep.to("cpu", torch.bfloat16).eval()
    deep.generation_config.max_new_tokens = 8
    deep.save_pretrained(out)
    processor.save_pretrained(out)


def _pictures(plan: ContrastPlan | AnswerPlan, progress: Progress) -> tuple[Views, Views]:
    """Those to train on and those to look at, drawn anew; none to train on where a phase is done."""
    count = 1 if progress.done(plan.steps) else plan.pictures
    train, tuning = views("train", 0, count, plan.grid), views("tuning", 0, _TUNING, plan.grid)
    progress.say(f"{count} pictures drawn")
    return train, tuning
