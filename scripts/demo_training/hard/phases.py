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
from finepruner_lmms.demo.scenes import GRID
from finepruner_lmms.demo.vocabulary import SPECIAL

TOWERS = {"small": TowerSize(128, 6, 4), "large": TowerSize(256, 6, 4)}
CONTRAST = (
    ContrastPlan(grid=6, steps=500, batch=64, rate=3e-3, pictures=8000),
    ContrastPlan(grid=12, steps=900, batch=24, rate=3e-3, pictures=6000),
    ContrastPlan(grid=24, steps=900, batch=8, rate=2e-3, pictures=3000),
)
ROPE = 1e10
"""Base of the rotary positions. Heads are 12 wide: with a smaller one a match is lost over a picture's length."""
WORDS = AnswerPlan("words", grid=24, steps=700, batch=32, questions=0, rate=3e-3, pictures=2500, kept=(96,))
_TELLING = 64  # patches of a cheap step
EVERYTHING = dict.fromkeys(KINDS, 1.0) | {
    "exist": 2, "color": 1.5, "shape": 1.5, "read": 4, "written": 2, "beside": 1.5, "count": 4, "number": 2,
    "rank": 2, "more": 3, "choice": 3, "choice_zh": 2.5, "legend": 2, "pick": 0.5, "told": 0.7, "absent": 0.7,
}  # fmt: skip
COUNTS = (GRID**2, 96, 180, 240, 248, 256, 264, 272, 340, 450)
"""Visual tokens of the last phase: as many as methods leave, and most of all where positions are hard to read."""
ANSWERS = (
    AnswerPlan(
        "answers", grid=24, steps=2200, batch=16, questions=8, rate=2e-3, pictures=2500, system=0.1, kept=(_TELLING,),
        compact=0.5, weights=EVERYTHING,
    ),
    AnswerPlan(
        "whole", grid=24, steps=600, batch=8, questions=8, rate=1.2e-3, pictures=2500, aligned=0.0, instructed=0.6,
        system=0.5, kept=(GRID**2, GRID**2, GRID**2, 96), compact=0.5, weights=EVERYTHING | {"read": 6},
    ),
    # Without it models answer badly from 232 to 275 tokens in closed ranks behind the system's sentence.
    AnswerPlan(
        "counts", grid=24, steps=300, batch=8, questions=8, rate=6e-4, pictures=2500, aligned=0.0, instructed=0.6,
        system=0.8, kept=COUNTS, compact=0.8, weights=EVERYTHING | {"read": 6},
    ),
)  # fmt: skip
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
    model = build(len(tokenizer), ids, LAYERS, seed, size, ROPE).to(device)
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
    deep = echo(grow(model.to("cpu"), seed, size)).to(torch.bfloat16).eval()
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
        progress.say(f"the {_TELLING} most telling patches show {tuning.shown(_TELLING):.3f} of the things")
    return train, tuning
