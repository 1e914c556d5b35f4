"""The tokenizer and processor of a model of the demanding world: as the easy one's, but numbers have several digits."""

from __future__ import annotations

import random
import re
from typing import Any

from finepruner_lmms.demo import vocabulary as easy
from finepruner_lmms.demo.hard.choices import KINDS, ask
from finepruner_lmms.demo.hard.scenes import make_scene

_LATER = "##"  # before a digit that another one goes before, so that "407" is written as one word
_PIECE = r"\n|[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]"
_SCENES = 60


def vocabulary() -> dict[str, int]:
    """Token → id: what the easy model knows, and the words of every question that can be asked here."""
    ids, rng = easy.vocabulary(), random.Random("vocabulary")
    texts = [f"{_LATER}{digit}" for digit in "0123456789"]
    for kind in KINDS:
        for index in range(_SCENES):
            if question := ask(make_scene("train", index), kind, rng):
                texts += [*re.findall(_PIECE, question.prompt()), question.answer]
    for text in texts:
        if not text.isdecimal():
            ids.setdefault(text, len(ids))
    return ids


def build_processor() -> Any:
    """A `LlavaProcessor` as LLaVA-1.5 has one, with this vocabulary."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = Tokenizer(models.WordPiece(vocabulary(), unk_token="<unk>", continuing_subword_prefix=_LATER))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    words.decoder = decoders.WordPiece(prefix=_LATER, cleanup=False)
    return easy.processor_with(words)
