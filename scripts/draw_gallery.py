"""Draw docs/gallery.md and its pictures: what methods keep of scenes of the demo, and what the model then answers.

    python scripts/draw_gallery.py [--out docs]

Each part of the page is a `Part` below: a scene, a question, methods and the words around them. The answers in the page
are those that the demo model gave when the page was drawn.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from PIL import Image

import finepruner_lmms as fp
from finepruner_lmms.asking.compared import Comparison, compare_methods
from finepruner_lmms.asking.show import figure
from finepruner_lmms.demo.shown import example
from finepruner_lmms.pruners.written import read_methods

SHARPNESS = 80
"""Dots per inch of a picture."""
QUALITY = 82
HEAD = """# What methods keep: a gallery

Scenes of the demo's test split, with the demo model's answers, green where they are right. Dropped tokens are dark; a
frame is around the evidence, what the question is about; the number after a method's name is its
[budget](python.md#a-pruner). These are examples, chosen because something can be seen in them: how often it happens is
in [the results](results.md).

`finepruner show demo:3`, or with a picture and a question of your own, draws the like; `make gallery` draws this page
again.
"""


@dataclass(frozen=True)
class Part:
    """A part of the page: its picture's `name`, and what `methods` make of a `question` about scene number `scene`."""

    name: str
    title: str
    words: str
    scene: int
    question: str
    methods: tuple[str, ...]


PARTS = (
    Part(
        "dropped",
        "A digit that some methods drop",
        "At one budget `fastv`, and `finepruner` with four heads, lose the box that the question is about, and the "
        "model names some digit all the same: nothing in an answer tells that its evidence is gone. Methods before the "
        "language model leave 64 tokens to every layer; those before layer 2 leave 30: two layers saw all 576.",
        3,
        "What digit is written in the purple box?",
        (
            *("random:64", "uniform:64", "divprune:64", "vispruner:64", "visionzip:64", "fastv:64"),
            *("finepruner:64:heads=4", "finepruner:64:head_strategy=recommended"),
        ),
    ),
    Part(
        "question",
        "The same picture, another question",
        "`vispruner` reads no question and keeps the same tokens as above. `fastv` and `finepruner` choose by the "
        "attention of the prompt's last token: now the triangle is there.",
        3,
        "Is there a blue triangle in the image?",
        ("random:64", "vispruner:64", "fastv:64", "finepruner:64:heads=4"),
    ),
    Part(
        "luck",
        "Right without having looked",
        "Two methods have lost the square, and the model's *no* is right. A score of yes-or-no questions holds such "
        "answers.",
        3,
        "Is the square yellow?",
        ("random:64", "finepruner:64:heads=4", "vispruner:64"),
    ),
    Part(
        "habit",
        "The same *no*, wrong",
        "The evidence is lost again, and the answer is the same; here it costs the point.",
        10,
        "Is the ring purple?",
        ("random:64", "finepruner:64:heads=4", "vispruner:64"),
    ),
    Part(
        "budgets",
        "Less and less",
        "One question at falling budgets. `fastv` reaches none below 36, at which nothing is left from layer 2 on; a "
        "method before the language model spends its whole budget in every layer and goes on.",
        6,
        "What digit is written in the yellow box?",
        (
            *(f"fastv:{budget}" for budget in (128, 64, 48, 40)),
            *(f"vispruner:{budget}" for budget in (128, 64, 32, 16)),
        ),
    ),
    Part(
        "stages",
        "Stage by stage",
        "`pdrop` and `sparsevlm` drop at four and three depths. In the end neither has a token of the square, and both "
        "are right: layers before still had it. The last stage is not all that an answer rests on.",
        3,
        "What color is the square?",
        ("pdrop:64", "sparsevlm:64"),
    ),
    Part(
        "heads",
        "Whose attention",
        "Four of the eight heads of layer 1 choose, picked by different strategies; or all heads, each normalised by "
        "itself (`recommended`). The strategy decides whether the digit stays; averages are in "
        "[the head study](head_study.md).",
        7,
        "What digit is written in the yellow box?",
        (
            *(f"finepruner:64:heads=4:head_strategy={name}" for name in ("sum", "sparsity", "graph_based")),
            "finepruner:64:head_strategy=recommended",
        ),
    ),
    Part(
        "misread",
        "Kept, and misread",
        "`visionzip` keeps every token of the digit and merges others into new ones, and the model names the digit of "
        "the other box; `pool` averages all, and it names neither. Evidence is needed, and not enough.",
        11,
        "What digit is written in the yellow box?",
        ("visionzip:64", "pool:64", "vispruner:64", "fastv:64"),
    ),
    Part(
        "mended",
        "Wrong with all tokens, right with fewer",
        "With all tokens the model reads the other box. It happens, and is why rows are compared question by question, "
        "both ways ([`compare`](results.md)).",
        9,
        "What digit is written in the red box?",
        ("vispruner:64", "divprune:64", "visionzip:64", "finepruner:64:head_strategy=recommended"),
    ),
)


def compared(part: Part, model: Any, processor: Any) -> Comparison:
    """What the methods kept, and the answers."""
    given = example(f"demo:{part.scene}", part.question)
    if given.expected is None:
        raise SystemExit(f"{part.name}: scene {part.scene} has no question {part.question!r} of its own")
    return compare_methods(
        model, processor, given.image, given.question, read_methods(part.methods),
        expected=given.expected, evidence=given.evidence, max_new_tokens=4,
    )  # fmt: skip


def section(part: Part, found: Comparison) -> str:
    """The part as Markdown; its picture is `gallery/<name>.webp`, and its answers are the picture's text."""
    said = ", ".join(f"{row.label}: {row.text} ({'right' if row.right else 'wrong'})" for row in found.rows)
    picture = f"![{part.question} {said}](gallery/{part.name}.webp)"
    asked = f"*{part.question}* Right: **{found.expected}** (scene {part.scene})"
    return "\n\n".join([f"## {part.title}", textwrap.fill(part.words, 120), asked, picture])


def picture(found: Comparison) -> bytes:
    """The figure as WebP."""
    file = io.BytesIO()
    figure(found).savefig(file, format="png", dpi=SHARPNESS)
    small = io.BytesIO()
    with Image.open(file) as drawn:
        drawn.convert("RGB").save(small, "WEBP", quality=QUALITY, method=6)
    return small.getvalue()


def main(out: Path) -> None:
    """Write the page and its pictures."""
    model, processor = fp.load_model("demo")
    (out / "gallery").mkdir(parents=True, exist_ok=True)
    sections = []
    for part in PARTS:
        found = compared(part, model, processor)
        (out / "gallery" / f"{part.name}.webp").write_bytes(picture(found))
        sections.append(section(part, found))
        print(f"{part.name}: {', '.join(f'{row.label} {row.text!r}' for row in found.rows)}")
    (out / "gallery.md").write_text("\n\n".join([HEAD.strip(), *sections]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    main(parser.parse_args().out)
