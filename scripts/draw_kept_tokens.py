"""Draw which visual tokens methods keep of one picture: the figure of the README.

    python scripts/draw_kept_tokens.py [--scene 3] [--kind digit] [--budget 64] [--out docs/kept_tokens.png]

The demo model answers one question about one scene of the demo's test split. Each panel shows the picture with the
dropped tokens painted over, the number of tokens left after the first drop, and the answer. Other methods:
`--methods divprune fastv` and so on, with parameters as in `finepruner:heads=4`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
import yaml
from matplotlib import pyplot as plt

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.questions import KINDS, ask
from finepruner_lmms.demo.scenes import GRID, PATCH, make_scene

METHODS = ("random", "vispruner", "fastv", "finepruner:head_strategy=recommended")
PAPER = np.array([1.0, 1.0, 1.0])
VEIL = 0.82
"""How much of the paper's colour covers a dropped token."""


def kept_tokens(image: np.ndarray, kept: torch.Tensor) -> np.ndarray:
    """`image` `[336, 336, 3]` with every token but `kept` (indices into the 24x24 tokens) painted over."""
    shown = np.zeros(GRID * GRID, dtype=bool)
    shown[kept.numpy()] = True
    shown = shown.reshape(GRID, GRID).repeat(PATCH, 0).repeat(PATCH, 1)[..., None]
    picture = image / 255
    return np.where(shown, picture, picture * (1 - VEIL) + PAPER * VEIL)


def parse(text: str, budget: int) -> fp.Pruner:
    """The pruner that `method:name=value,name=value` names."""
    name, _, rest = text.partition(":")
    parameters = dict(pair.split("=") for pair in rest.split(",") if pair)
    return fp.build_pruner(name, budget=budget, **{key: yaml.safe_load(value) for key, value in parameters.items()})


def draw(scene_number: int, kind: str, budget: int, methods: list[str], out: Path) -> str:
    """Write the picture; returns what it shows, a line for each panel."""
    scene = make_scene("test", scene_number)
    question = ask(scene, kind, random.Random(scene_number))
    if question is None:
        raise SystemExit(f"scene: number {scene_number} allows no question of kind {kind!r}; take another scene")
    model, processor = fp.load_model("demo")
    inputs = processor(images=scene.image(), text=vicuna_v1(question.prompt(), has_image=True), return_tensors="pt")
    panels = [("all 576 tokens", scene.pixels() / 255, said(model, processor, fp.build_pruner("vanilla"), inputs)[0])]
    for method in methods:
        answer, trace = said(model, processor, parse(method, budget), inputs)
        layer, rows = min(trace.kept.items())
        name = method.replace(":", ", ").replace("head_strategy=", "")
        where = "before the language model" if layer == 0 else f"from decoder layer {layer} on"
        panels.append((f"{name}\n{len(rows[0])} {where}", kept_tokens(scene.pixels(), rows[0]), answer))
    figure(question, panels, out)
    return "\n".join(" | ".join((" ".join(title.split("\n")), answer)) for title, _, answer in panels)


def said(model, processor, pruner: fp.Pruner, inputs) -> tuple[str, fp.Trace]:
    """The answer and what was kept."""
    result = fp.generate(model, pruner, inputs, max_new_tokens=4)
    return processor.batch_decode(result.sequences, skip_special_tokens=True)[0].strip(), result.trace


def figure(question: Question, panels: list[tuple[str, np.ndarray, str]], out: Path) -> None:
    """Panels in a row; an answer is green if it is right."""
    drawn, axes = plt.subplots(1, len(panels), figsize=(2.3 * len(panels), 3.05), layout="constrained")
    for axis, (title, picture, answer) in zip(axes, panels, strict=True):
        right = answer.lower() == question.expected.lower()
        axis.imshow(picture)
        axis.set_xticks([]), axis.set_yticks([])
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(f"“{answer}”", fontsize=12, color="#1a7f37" if right else "#c0392b")
    drawn.suptitle(question.text, fontsize=12)
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(out, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, default="digit")
    parser.add_argument("--budget", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--out", type=Path, default=Path("docs/kept_tokens.png"))
    given = parser.parse_args()
    print(draw(given.scene, given.kind, given.budget, given.methods, given.out))
