"""The phases of a model of the demanding world: contrast on small and whole pictures, then answers on them.

Each is kept every two minutes, and a run that was stopped goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from demo_training.hard.answers import Answerer, AnswerPlan
from demo_training.hard.contrast import Captioned, ContrastPlan, train_contrast
from demo_training.hard.resume import Progress
from demo_training.hard.seen import Seen, read, see, write
from demo_training.hard.views import Views, views
from demo_training.language import grow
from demo_training.sizes import SHALLOW, TowerSize, build, tower_of
from finepruner_lmms.demo.hard.choices import KINDS
from finepruner_lmms.demo.hard.vocabulary import build_processor
from finepruner_lmms.demo.vocabulary import SPECIAL

TOWERS = {"small": TowerSize(128, 4, 4), "large": TowerSize(256, 6, 4)}
CONTRAST = (
    ContrastPlan(grid=6, steps=2500, batch=64, rate=1.5e-3, pictures=8000),
    ContrastPlan(grid=24, steps=300, batch=16, rate=4e-4, pictures=3000),
)
WORDS = AnswerPlan("words", grid=6, steps=300, batch=64, questions=0, rate=3e-3, pictures=6000)
FIRST = {"exist": 1, "color": 2, "shape": 2, "read": 3, "verify": 1, "pick": 1, "written": 1, "beside": 1, "count": 1}
ANSWERS = (
    AnswerPlan(
        "answers6", grid=6, steps=600, batch=48, questions=5, rate=3e-3, pictures=6000, instructed=0, weights=FIRST
    ),
    AnswerPlan(
        "answers12", grid=12, steps=600, batch=32, questions=7, rate=3e-3, pictures=4000, system=0.1,
        weights=dict.fromkeys(KINDS, 1.0) | {"read": 3, "written": 3, "exist": 2, "count": 2},
    ),
    AnswerPlan(
        "answers24", grid=24, steps=700, batch=24, questions=8, rate=2e-3, pictures=2500, system=0.1,
        kept=(96, 128, 160), weights=dict.fromkeys(KINDS, 1.0) | {"read": 3, "written": 3, "exist": 2, "count": 2},
    ),
)  # fmt: skip
DEEPER = AnswerPlan(
    "deep",
    grid=24,
    steps=200,
    batch=12,
    questions=10,
    rate=1e-3,
    pictures=2500,
    aligned=0.05,
    instructed=0.85,
    system=0.8,
    kept=(576, 192, 128, 64, 32),
    chance=True,
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
    tower.requires_grad_(False)
    progress, answerer = Progress(work / f"{WORDS.name}.pt", log), Answerer(model, tokenizer)
    answerer.align(WORDS, _seen(tower, captioned, WORDS, progress, work)[0], progress)
    answerer.ready()
    for answers in ANSWERS:
        progress = Progress(work / f"{answers.name}.pt", log)
        answerer.train(answers, *_seen(tower, captioned, answers, progress, work), progress)
    deep = grow(model.to("cpu"), seed, size).to(device)
    progress, answerer = Progress(work / f"{DEEPER.name}.pt", log), Answerer(deep, tokenizer)
    new = not progress.done(DEEPER.steps)
    train, tuning = _seen(tower_of(deep), captioned, DEEPER, progress, work)
    answerer.train(DEEPER, train, tuning, progress)
    for kept in (0, 192, 64) if new else ():
        log(f"{kept or 'all'} visual tokens: {answerer.evaluate(tuning, DEEPER, kept)}")
    deep = deep.to("cpu", torch.bfloat16).eval()
    deep.generation_config.max_new_tokens = 8
    deep.save_pretrained(out)
    processor.save_pretrained(out)


def _pictures(plan: ContrastPlan | AnswerPlan, progress: Progress) -> tuple[Views, Views]:
    """Those to train on and those to look at, drawn anew; next to none where a phase is done."""
    done = progress.done(plan.steps)
    count, held_out = (1, 1) if done else (plan.pictures, _TUNING)
    train, tuning = views("train", 0, count, plan.grid), views("tuning", 0, held_out, plan.grid)
    progress.say(f"{count} pictures drawn")
    return train, tuning


def _seen(
    tower: torch.nn.Module, captioned: Captioned, plan: AnswerPlan, progress: Progress, work: Path
) -> tuple[Seen, Seen]:
    """What the finished tower makes of the same pictures; kept in a file beside the phases."""
    file = work / f"seen{plan.grid}_{plan.pictures}.pt"
    if not progress.done(plan.steps) and file.exists():
        progress.say(f"features of {plan.pictures} pictures from {file.name}")
        return read(file, plan.grid)
    train, tuning = (see(tower, captioned, pictures, shift=True) for pictures in _pictures(plan, progress))
    if not progress.done(plan.steps):
        write(file, train, tuning)
    return train, tuning
