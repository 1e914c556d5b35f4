"""One question about pictures, asked as an evaluation asks it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from finepruner_lmms.asking.conversation import Conversation, Part, Turn, Video, shown
from finepruner_lmms.asking.inputs import Prompt, batch_inputs, input_maker
from finepruner_lmms.asking.settings import ImageSettings, evaluation
from finepruner_lmms.asking.views import Picture, pictures
from finepruner_lmms.checkpoints.images import read_rgb
from finepruner_lmms.engine.families.registry import family_of
from finepruner_lmms.engine.generate import generate
from finepruner_lmms.engine.generation import Generation
from finepruner_lmms.engine.trace import Trace
from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.pruners import Pruner

Shown = Image.Image | str | Path | Video
"""A picture, the path of one, or a video."""
_LENGTH = 128


@dataclass(frozen=True, eq=False)
class Answer:
    """`text` is the answer; `generation` what `generate` returned, and `trace` what was kept (its only row).

    `conversation` is what was asked, and `prompt` the same as the model took it. `pruner` chose the visual tokens of
    `pictures`, which are as the vision tower saw them. `seconds` is from inputs to the whole answer, and
    `generation.seconds_to_first_token` its first part.
    """

    text: str
    generation: Generation = field(repr=False)
    conversation: Conversation = field(repr=False)
    prompt: Prompt = field(repr=False)
    pruner: Pruner = field(repr=False)
    pictures: tuple[Picture, ...] = field(repr=False)
    seconds: float

    @property
    def trace(self) -> Trace:
        """Which visual tokens were kept, and how many entered each layer."""
        return self.generation.trace


def answer(
    model: Any,
    processor: Any,
    image: Shown | Sequence[Shown] | None,
    question: str,
    pruner: Pruner,
    *,
    earlier: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, Any] | None = None,
    **generation_kwargs: Any,
) -> Answer:
    """Ask a model of any family one question, with the prompt and the image settings of its evaluation.

    `image` is a picture, several, or none; pictures are shown before the first question. `earlier` are the questions
    and answers of the turns before: the whole conversation is one prompt, read and pruned anew. `settings` are those
    of `model_args` that concern prompt and pictures (`conv`, `min_pixels`, `max_pixels`, `max_tiles`, …).
    `generation_kwargs` go to `generate`; without them the answer is greedy and has at most 128 tokens.
    Raises `FieldError` as `generate` does, and for a setting that the family does not read.
    """
    family = family_of(model)
    known = ("conv", *ImageSettings._fields)
    for name in settings or {}:
        if name not in known:
            problem = f"unknown setting {name!r}{nearest(name, known)}; known: {', '.join(known)}"
            raise FieldError("settings", problem, value=name)
    asked = evaluation(family, SimpleNamespace(**(settings or {})))
    maker = input_maker(model.config, processor, asked)
    conversation = _conversation(image, question, earlier)
    prompt = maker.prompt(conversation)
    padding = processor.tokenizer.pad_token_id
    inputs = batch_inputs([prompt], 0 if padding is None else padding)
    options = {"max_new_tokens": _LENGTH, "do_sample": False} | generation_kwargs
    began = time.perf_counter()
    found = generate(model, pruner, inputs, questions=[prompt.question], **options)
    (text,) = processor.tokenizer.batch_decode(found.sequences[:1], skip_special_tokens=True)  # waits for the device
    seconds = time.perf_counter() - began
    seen = pictures(family, model.config, processor, asked.images, conversation.images, prompt.spans)
    return Answer(text.strip(), found, conversation, prompt, pruner, seen, seconds)


def _conversation(
    image: Shown | Sequence[Shown] | None, question: str, earlier: Sequence[tuple[str, str]]
) -> Conversation:
    given = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
    parts: list[Part] = [one if isinstance(one, Video) else _picture(one) for one in given]
    turns: list[Turn] = []
    for asked, answered in earlier:
        turns += [Turn("user", (*parts, asked)), Turn("assistant", (answered,))]
        parts = []
    return Conversation((*turns, Turn("user", (*parts, question))))


def _picture(given: Any) -> Part:
    return read_rgb(given) if isinstance(given, str | Path) else shown(given, "image")
