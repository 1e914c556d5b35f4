"""What several methods keep of the same pictures for the same question, as data: figures, pages and text read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finepruner_lmms.asking.answer import Answer, Shown, answer
from finepruner_lmms.asking.views import Mask, Picture
from finepruner_lmms.errors import FieldError
from finepruner_lmms.pruners import Pruner, build_pruner

Share = tuple[float, float, float, float]
"""A part of a picture: left, top, right and bottom, as shares of its sides."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What decoder layers see from `layer` on (0: what enters the model).

    `kept` is `[N]` bool for each picture, `entering` the visual tokens of all of them, merged ones included. `heads`
    are those that chose, best first; None where all of them did, or none.
    """

    layer: int
    kept: tuple[Mask, ...]
    entering: int
    heads: tuple[int, ...] | None = None

    @property
    def title(self) -> str:
        """How many tokens, and from where on."""
        kept, whole = sum(int(mask.sum()) for mask in self.kept), sum(map(len, self.kept))
        if self.all_merged:
            return f"{whole} merged to {self.entering}, {self.when}"
        merged = f" + {self.entering - kept} merged" if self.entering > kept else ""
        return f"{kept} of {whole}{merged}, {self.when}"

    @property
    def all_merged(self) -> bool:
        """Whether no token is left as it was and new ones stand for all, as in pooling: then nothing is dropped."""
        return self.entering > 0 and not any(mask.any() for mask in self.kept)

    def shown(self, number: int) -> Mask:
        """What is drawn of a picture: the kept tokens, or all where all were merged."""
        return np.ones_like(self.kept[number]) if self.all_merged else self.kept[number]

    @property
    def when(self) -> str:
        """From where on."""
        return f"from layer {self.layer}" if self.layer else "before layer 0"


@dataclass(frozen=True, eq=False)
class Seen:
    """What a method kept, `stages` in the order of their layers, and what the model then answered.

    No stages: nothing was dropped, or, where it was not `recorded`, nobody knows. `seconds` is the whole answer,
    `first_token` the time to its first token. `right` is the verdict where the right answer is known. `problem` says
    why there is no answer.
    """

    label: str
    text: str = ""
    stages: tuple[Stage, ...] = ()
    seconds: float | None = None
    first_token: float | None = None
    right: bool | None = None
    problem: str = ""
    recorded: bool = True


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side: the same `question` about the same `pictures`. `about` says of what model and run.

    `evidence` are the parts of the first picture that an answer needs, where they are known.
    """

    question: str
    pictures: tuple[Picture, ...]
    rows: tuple[Seen, ...]
    about: str = ""
    expected: str | None = None
    evidence: tuple[Share, ...] = ()

    @property
    def visual_tokens(self) -> int:
        """Of all pictures, before anything is dropped."""
        return sum(picture.num_visual_tokens for picture in self.pictures)

    def evidence_kept(self, stage: Stage) -> float | None:
        """Which share of the evidence kept tokens show, as a whole or in tiles, 0 to 1.

        None where it is not known, and where all tokens were merged.
        """
        if not self.evidence or not self.pictures[0].views or stage.all_merged:
            return None
        picture = self.pictures[0]
        width, height = picture.image.size
        needed = np.zeros((height, width), dtype=bool)
        for left, top, right, bottom in self.evidence:
            needed[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
        lit = np.logical_or.reduce([picture.light(stage.kept[0], sheet) for sheet in picture.sheets])
        return float(lit[needed].mean()) if needed.any() else None

    def whole(self, row: Seen) -> str:
        """What is said of a row without stages."""
        return f"all {self.visual_tokens}" if row.recorded else "not recorded"

    def everything(self) -> Stage:
        """The stage of who drops nothing."""
        whole = tuple(np.ones(picture.num_visual_tokens, dtype=bool) for picture in self.pictures)
        return Stage(0, whole, self.visual_tokens)


def label_of(pruner: Pruner) -> str:
    """A method as tables name it: `finepruner 64 heads=4`, with the parameters that are not its defaults."""
    usual = build_pruner(pruner.name).parameters()
    own = [f"{key}={value}" for key, value in pruner.parameters().items() if value != usual.get(key)]
    return " ".join([pruner.name, *([] if pruner.budget is None else [str(pruner.budget)]), *own])


def seen(found: Answer, label: str | None = None) -> Seen:
    """What an answer's method kept."""
    trace = found.trace
    entering = trace.tokens_entering[0] if trace.tokens_entering else []
    stages = []
    for layer, rows in sorted(trace.kept.items()):
        there = np.zeros(sum(span.length for span in found.prompt.spans), dtype=bool)
        there[rows[0].cpu().numpy()] = True
        stages.append(Stage(layer, _by_picture(found, there), entering[layer], _heads(found, layer)))
    first = found.generation.seconds_to_first_token
    name = label_of(found.pruner) if label is None else label
    return Seen(name, found.text, tuple(stages), found.seconds, first)


def _heads(found: Answer, layer: int) -> tuple[int, ...] | None:
    """Those that chose, where they are some of all; of several pictures each has its own, which no one list names."""
    if layer not in found.trace.chosen_heads or len(found.pictures) != 1:
        return None
    chosen, scores = found.trace.chosen_heads[layer]
    heads = tuple(head for head in chosen[0].tolist() if head >= 0)
    return None if len(heads) == scores.shape[-1] else heads


def _by_picture(found: Answer, there: Mask) -> tuple[Mask, ...]:
    """`[placeholders of the prompt]` → for each picture its visual tokens `[N]`, newlines left out."""
    masks, start = [], 0
    for span in found.prompt.spans:
        if not span.video:
            masks.append(np.delete(there[start : start + span.length], list(span.separators)))
        start += span.length
    return tuple(masks)


def of_answers(answers: Sequence[Answer]) -> Comparison:
    """Answers to one question side by side. `FieldError` where they are of different questions or pictures."""
    if not answers:
        raise FieldError("answers", "there is none to show", fix="give what `answer` returned")
    first = answers[0]
    if not first.pictures:
        raise FieldError("answer", "it was asked without a picture", fix="give `answer` an image")
    for other in answers[1:]:
        same = len(other.pictures) == len(first.pictures) and all(
            a.image.size == b.image.size and a.image.tobytes() == b.image.tobytes() and a.views == b.views
            for a, b in zip(first.pictures, other.pictures, strict=True)
        )
        if not same or other.conversation.question != first.conversation.question:
            raise FieldError("answers", "are about different pictures or questions", fix="show them one by one")
    return Comparison(first.conversation.question, first.pictures, tuple(map(seen, answers)))


def compare_methods(
    model: Any,
    processor: Any,
    image: Shown | Sequence[Shown],
    question: str,
    methods: Iterable[tuple[str, Pruner]],
    *,
    about: str = "",
    expected: str | None = None,
    evidence: Sequence[Share] = (),
    **generation_kwargs: Any,
) -> Comparison:
    """Ask with every method in turn: each a label and a pruner. What a method cannot do is said in its row.

    The model is asked once before, so that no method's time holds what only the first call takes. `expected` is the
    right answer, and `evidence` what it needs of the picture (`Comparison`), where they are known. `FieldError` where
    nobody can answer.
    """
    options: dict[str, Any] = {"execution": "eager"} | generation_kwargs
    whole = answer(model, processor, image, question, build_pruner("vanilla"), **(options | {"max_new_tokens": 1}))
    rows: list[Seen] = []
    problems: list[FieldError] = []
    for label, pruner in methods:
        try:
            row = seen(answer(model, processor, image, question, pruner, **options), label)
        except FieldError as error:
            problems.append(error)
            rows.append(Seen(label, problem=str(error)))
            continue
        right = None if expected is None else row.text.strip().lower().rstrip(".") == expected.strip().lower()
        rows.append(Seen(label, row.text, row.stages, row.seconds, row.first_token, right))
    if rows and len(problems) == len(rows):
        raise problems[0]
    return Comparison(question, whole.pictures, tuple(rows), about, expected, tuple(evidence))
