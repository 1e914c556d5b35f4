"""What a question takes, one step after another, and where in its text each step can be taken.

A letter or a "yes" alone teaches little: that a letter stands for a word, and the word for what was asked, is learned
in parts. So a model also says, along the text, the facts that an answer hangs on, and what follows from them for an
option. Facts are asked of a layer in the middle, verdicts of one before the last (`demo_training.hard.answers`), so
that there are layers left to work with them. All of it is text: nothing says where in the picture a thing is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finepruner_lmms.demo.hard.clear import fitting
from finepruner_lmms.demo.hard.questions import PLURAL
from finepruner_lmms.demo.hard.scenes import Scene
from finepruner_lmms.demo.hard.things import COLORS, SIDES, Thing
from finepruner_lmms.demo.question import LETTERS, Question

DIRECT = ("exist", "color", "shape", "read", "verify", "pick", "beside", "side", "rank", "absent", "count")
"""Kinds whose answer is the fact."""
_SINGULAR = {plural: name for name, plural in PLURAL.items()}
_MOST = 9  # the largest number that is one token


@dataclass
class Steps:
    """Token ids by place in a question's text: `facts[i]` is what is true where the text has its token `i`."""

    facts: dict[int, int] = field(default_factory=dict)
    verdicts: dict[int, int] = field(default_factory=dict)

    def __or__(self, other: Steps) -> Steps:
        return Steps(self.facts | other.facts, self.verdicts | other.verdicts)


def steps_of(scene: Scene, question: Question, asked: list[int], tokenizer) -> Steps:
    """The steps inside `asked`, the tokens of what is put to the model about `scene`."""
    return _Text(scene, question, asked, tokenizer).steps()


class _Text:
    """A question and its tokens."""

    def __init__(self, scene: Scene, question: Question, asked: list[int], tokenizer) -> None:
        self.scene, self.question, self.asked, self.tokenizer = scene, question, asked, tokenizer

    def steps(self) -> Steps:
        """Those of its kind."""
        inside = {
            "legend": self._legend, "written": self._written, "number": self._number, "place": self._place,
            "more": self._more, "beside": self._beside, "side": self._beside, "count": self._count,
        }  # fmt: skip
        found = self._options() if self.question.options else Steps()
        return found | inside[self.question.kind]() if self.question.kind in inside else found

    def _options(self) -> Steps:
        """The answer in a word where the options begin; behind each option its letter if it is right, or "no".

        Inside a number of as many digits, what the right one has there, and whether it is right so far.
        """
        steps, right = Steps(), self._tokens(self.question.answer)
        for at, (letter, option) in enumerate(zip(LETTERS, self.question.options, strict=True)):
            start, end = self._find(f"\n{letter}. {option}")
            if not at:
                steps.facts[start] = right[0]
            if self.question.answer.isdecimal() and len(option) == len(self.question.answer):
                steps |= self._claim(self.question.answer, end)
            steps.verdicts[end] = self._tokens(letter if option == self.question.answer else "no")[0]
        return steps

    def _legend(self) -> Steps:
        """Behind the vehicle's name, the colour of its plate."""
        _, end = self._find(self.question.text.rstrip("?").rpartition(" ")[2], last=self._find(self.question.text)[1])
        return Steps({end: self._tokens(self._plate().color)[0]})

    def _count(self) -> Steps:
        """Behind what is counted, how many there are."""
        return Steps({self._find(" are there?")[0]: self._tokens(self.question.answer)[0]})

    def _written(self) -> Steps:
        return self._claim(self._plate().name, self._claimed())

    def _number(self) -> Steps:
        """As where numbers are claimed, and behind what is counted."""
        true = str(len(self.question.subject))
        found = self._claim(true, self._claimed())
        found.facts[self._find(" in the image")[0]] = self._tokens(true)[0]
        return found

    def _beside(self) -> Steps:
        """Behind the plate, what is asked of its neighbour."""
        return Steps({self._find(" plate")[1]: self._tokens(self.question.answer)[0]})

    def _place(self) -> Steps:
        """Behind the plate, the side that the object is on; behind the side that is claimed, whether it is that."""
        plate, _ = self.question.subject
        side = next(pair.side for pair in self.scene.pairs if pair.plate == plate)
        _, at = self._find(" plate")
        end = max(self._find(name)[1] for name in SIDES if name in self.question.text)
        return Steps({at: self._tokens(side)[0]}, {end: self._tokens(self.question.answer)[0]})

    def _more(self) -> Steps:
        """Behind each of the two, how many there are of it."""
        first, _, second = self.question.text.removeprefix("Are there more ").partition(" than ")
        found: dict[int, int] = {}
        for name in (first, second.removesuffix(" in the image?")):
            color = name.removesuffix(" objects")
            things = fitting(self.scene, color=color) if color in COLORS else fitting(self.scene, name=_SINGULAR[name])
            found[self._find(f" {name}")[1]] = self._tokens(str(min(len(things), _MOST)))[0]
        return Steps(found)

    def _claimed(self) -> int:
        """Where the number that the question claims ends."""
        return self._find(self.question.text.rstrip("?").rpartition(" ")[2])[1]

    def _claim(self, true: str, end: int) -> Steps:
        """In a number of as many digits that ends there: what the true one has, and whether it is that so far."""
        digits = self._tokens(true)
        start, steps = end - len(digits), Steps()
        for count, digit in enumerate(digits, 1):
            steps.facts[start + count - 1] = digit
            same = self.asked[start : start + count] == digits[:count]
            steps.verdicts[start + count] = self._tokens("yes" if same else "no")[0]
        return steps

    def _plate(self) -> Thing:
        return next(plate for plate in self.scene.plates if plate in self.question.subject)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _find(self, text: str, last: int | None = None) -> tuple[int, int]:
        """Where `text` stands in the question: its last place that ends at `last` or before."""
        said = self._tokens(text)
        end = len(self.asked) if last is None else last
        start = max(at for at in range(end - len(said) + 1) if self.asked[at : at + len(said)] == said)
        return start, start + len(said)
