"""The phases of a model of the demanding world: contrast on small and whole pictures, then answers on them.

Each is kept every two minutes, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from demo_training.hard.answers import LAYERS, Answerer, AnswerPlan
from demo_training.hard.contrast import Captioned, ContrastPlan, train_contrast
from demo_training.hard.neighbours import look_around
from demo_training.hard.resume import Progress
from demo_training.hard.seen import Seen, read, see, write
from demo_training.hard.views import Views, views
from demo_training.language import grow
from demo_training.sizes import TowerSize, build, tower_of
from finepruner_lmms.demo.hard.choices import KINDS
from finepruner_lmms.demo.hard.vocabulary import build_processor
from finepruner_lmms.demo.vocabulary import SPECIAL

TOWERS = {"small": TowerSize(128, 6, 4), "large": TowerSize(256, 6, 4)}
CONTRAST = (
    ContrastPlan(grid=6, steps=500, batch=64, rate=3e-3, pictures=8000),
    ContrastPlan(grid=12, steps=900, batch=24, rate=3e-3, pictures=6000),
    ContrastPlan(grid=24, steps=900, batch=8, rate=2e-3, pictures=3000),
)
WORDS = AnswerPlan("words", grid=6, steps=300, batch=64, questions=0, rate=3e-3, pictures=6000)
FIRST = {
    "exist": 1, "color": 2, "shape": 2, "read": 3, "verify": 1, "pick": 1, "written": 2, "beside": 2, "side": 1,
    "place": 1, "count": 1, "told": 2,
}  # fmt: skip
LOOKUPS = {
    "exist": 2, "color": 2, "shape": 2, "read": 2, "verify": 1.5, "pick": 1, "count": 2, "number": 1, "beside": 2,
    "rank": 1, "told": 1,
}  # fmt: skip
EVERYTHING = dict.fromkeys(KINDS, 1.0) | {
    "read": 2.5, "written": 2.0, "beside": 2.5, "side": 2.0, "count": 1.5, "choice": 8.0, "choice_zh": 4.0,
    "legend": 2.0, "verify": 0.5, "pick": 0.5,
}  # fmt: skip
ANSWERS = (
    AnswerPlan(
        "answers6", grid=6, steps=600, batch=48, questions=5, rate=3e-3, pictures=6000, instructed=0, weights=FIRST
    ),
    AnswerPlan(
        "answers12", grid=12, steps=700, batch=16, questions=7, rate=3e-3, pictures=4000, system=0.1, weights=LOOKUPS
    ),
    AnswerPlan(
        "lookups24", grid=24, steps=600, batch=16, questions=8, rate=2e-3, pictures=2500, system=0.1, instructed=0.2,
        kept=(64, 96, 128), weights=LOOKUPS,
    ),
    AnswerPlan(
        "answers24", grid=24, steps=1000, batch=16, questions=8, rate=2e-3, pictures=2500, system=0.2,
        kept=(64, 96, 128), compact=0.5, weights=EVERYTHING,
    ),
)  # fmt: skip
DEEPER = AnswerPlan(
    "deep",
    grid=24,
    steps=80,
    batch=8,
    questions=8,
    rate=8e-4,
    pictures=2500,
    aligned=0.05,
    instructed=0.6,
    system=0.5,
    kept=(576, 576, 192),
    chance=True,
    compact=0.5,
)
_TUNING = 128
_APART = 20_000  # pictures between those of two seeds


def train(work: Path, out: Path, seed: int, tower_size: str, device: str, log: Callable[[str], None]) -> None:
    """All phases that are not done yet; the checkpoint goes to `out`, what is kept of phases to `work`.

    Models of different seeds share no picture, no question and no weight.
    """
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    processor, size, start = build_processor(), TOWERS[tower_size], seed * _APART
    tokenizer = processor.tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    model = build(len(tokenizer), ids, LAYERS, seed, size).to(device)
    tower, captioned = tower_of(model), Captioned(size.width).to(device)
    look_around(tower)
    for plan in CONTRAST:
        progress, rng = _phase(f"contrast{plan.grid}", work, seed, log)
        train_contrast(tower, captioned, plan, *_pictures(plan, start, progress), progress, rng)
    tower.requires_grad_(False)
    answerer, (progress, rng) = Answerer(model, tokenizer), _phase(WORDS.name, work, seed, log)
    answerer.align(WORDS, _seen(tower, captioned, WORDS, start, progress)[0], progress, rng)
    answerer.ready()
    for answers in ANSWERS:
        progress, rng = _phase(answers.name, work, seed, log)
        answerer.train(answers, *_seen(tower, captioned, answers, start, progress), progress, rng)
    deep = echo(grow(model.to("cpu"), seed, size)).to(device)
    answerer, (progress, rng) = Answerer(deep, tokenizer), _phase(DEEPER.name, work, seed, log)
    new = not progress.done(DEEPER.steps)
    train, tuning = _seen(tower_of(deep), captioned, DEEPER, start, progress)
    answerer.train(DEEPER, train, tuning, progress, rng)
    for kept in (0, 192, 64) if new else ():
        log(f"{kept or 'all'} visual tokens: {answerer.evaluate(tuning, DEEPER, kept)}")
    deep = deep.to("cpu", torch.bfloat16).eval()
    deep.generation_config.max_new_tokens = 8
    deep.save_pretrained(out)
    processor.save_pretrained(out)


def echo(deep: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Layers that add nothing yet become copies of the trained one before them, whose output still counts for nothing.

    So their heads look somewhere, which methods listen to, before they are trained. As in "LLaMA Pro: progressive LLaMA
    with block expansion" (https://arxiv.org/abs/2401.02415). Changed in place.
    """
    trained = None
    for layer in deep.model.language_model.layers:
        if layer.self_attn.o_proj.weight.any():
            trained = layer
        elif trained is not None:
            layer.load_state_dict(trained.state_dict())
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return deep


def _phase(name: str, work: Path, seed: int, log: Callable[[str], None]) -> tuple[Progress, random.Random]:
    return Progress(work / f"{name}.pt", log), random.Random(f"{name} {seed}")


def _pictures(plan: ContrastPlan | AnswerPlan, start: int, progress: Progress) -> tuple[Views, Views]:
    """Those to train on and those to look at, drawn anew; next to none where a phase is done."""
    done = progress.done(plan.steps)
    count, held_out = (1, 1) if done else (plan.pictures, _TUNING)
    train, tuning = views("train", start, count, plan.grid), views("tuning", 0, held_out, plan.grid)
    progress.say(f"{count} pictures drawn")
    return train, tuning


def _seen(
    tower: torch.nn.Module, captioned: Captioned, plan: AnswerPlan, start: int, progress: Progress
) -> tuple[Seen, Seen]:
    """What the finished tower makes of the same pictures; kept in a file beside the phases."""
    file = progress.file.with_name(f"seen{plan.grid}_{plan.pictures}.pt")
    if not progress.done(plan.steps) and file.exists():
        progress.say(f"features of {plan.pictures} pictures from {file.name}")
        return read(file, plan.grid, start)
    train, tuning = (see(tower, captioned, pictures, shift=True) for pictures in _pictures(plan, start, progress))
    if not progress.done(plan.steps):
        write(file, train, tuning)
    return train, tuning
