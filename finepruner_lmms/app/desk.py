"""Who answers the page: a model that is asked with every chosen method, and words for what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.app.choices import Choice, Offer
from finepruner_lmms.app.samples import Samples
from finepruner_lmms.asking.compared import compare_methods
from finepruner_lmms.asking.show_page import body
from finepruner_lmms.checkpoints.images import read_rgb
from finepruner_lmms.errors import Failure, FieldError
from finepruner_lmms.output import html, one_line
from finepruner_lmms.pruners import Pruner

Progress = Callable[[int, int, str], None]
"""Told before each method is asked: how many are done, of how many, and which comes now."""
_LONGEST = 4000
"""Characters of a question: a page that others may reach takes no book."""


@dataclass(frozen=True, eq=False)
class Desk:
    """A model with its processor. `about` says which, `tokens` how long an answer may become."""

    model: Any
    processor: Any
    about: str
    tokens: int
    samples: Samples

    @property
    def offer(self) -> Offer:
        """What there is to choose from."""
        return Offer.of(self.model.config)

    def answer(self, file: str | None, question: str, choice: Choice, progress: Progress) -> str:
        """What each method keeps and answers, as HTML; where the request is wrong, what is wrong with it."""
        try:
            return f'<div class="kept">{self._compared(file, question, choice, progress)}</div>'
        except Failure as error:
            said = "".join(f"<p>{html(one_line(line))}</p>" for line in error.lines())
            return f'<div class="kept"><div class="problem" role="alert">{said}</div></div>'

    def _compared(self, file: str | None, question: str, choice: Choice, progress: Progress) -> str:
        if not file:
            raise FieldError("picture", "there is none", fix="upload one, or choose an example below it")
        if not question.strip():
            raise FieldError("question", "is empty", fix="ask something about the picture")
        if len(question) > _LONGEST:
            raise FieldError("question", f"has {len(question)} characters; at most {_LONGEST} are taken")
        try:
            known = self.samples.find(read_rgb(file, "picture"), question)
        except FieldError as error:  # whose text names our own copy of the file
            raise FieldError("picture", "the file cannot be read as one", fix="give a PNG or a JPEG") from error
        found = compare_methods(
            self.model, self.processor, known.image, question, _told(choice.pruners(), progress),
            about=self.about, expected=known.expected, evidence=known.evidence, max_new_tokens=self.tokens,
        )  # fmt: skip
        return body(found, level=2)


def _told(methods: Sequence[tuple[str, Pruner]], progress: Progress) -> Iterator[tuple[str, Pruner]]:
    for done, (label, pruner) in enumerate(methods):
        progress(done, len(methods), label)
        yield label, pruner
