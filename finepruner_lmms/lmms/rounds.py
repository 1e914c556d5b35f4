"""Tasks of several rounds, each of which asks with what was answered before.

A round is a prompt of its own: its images are read and pruned anew, with the turns that the task repeats in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lmms_eval.api.instance import GenerationResult, Instance

from finepruner_lmms.asking.conversation import Conversation, Turn, from_messages, shown
from finepruner_lmms.errors import FieldError
from finepruner_lmms.lmms.requests import Asked

_MOST = 100


@dataclass(frozen=True)
class Round:
    """What a task says after a round: what it asks next, or, without a conversation, what all came to.

    `told` is what it wants to be told in the round after.
    """

    conversation: Conversation | None
    answers: list[str] | None = None
    told: Any = None


class Answering(Protocol):
    """Who answers: `PrunedModel`."""

    is_simple: bool
    task_dict: dict[str, Any]

    def asked(self, request: Instance) -> Asked:
        """What a request asks."""

    def answer(self, requests: Sequence[Asked]) -> Iterator[GenerationResult]:
        """The answers of questions, in order."""

    def next_round(self, request: Instance, document: Any, answers: list[str], told: Any) -> Round | None:
        """What comes after these answers."""


def chat_round(request: Instance, document: Any, answers: list[str], told: Any) -> Round | None:
    """lmms-eval's chat interface: `doc_to_messages` with the number of the round gives four things, or ends."""
    _, doc_to_messages, *_, doc_id, task, _ = request.args
    said = doc_to_messages(document, round_idx=len(answers), previous_output=answers, previous_round_info=told)
    if not (isinstance(said, tuple) and len(said) == 4):
        return None
    messages, ended, came_to, told = said
    if ended:
        return Round(None, _texts(came_to, answers), told)
    return Round(from_messages(messages, f"task {task!r}, document {doc_id}"), None, told)


def simple_round(request: Instance, document: Any, answers: list[str], told: Any) -> Round | None:
    """lmms-eval's simple interface: `doc_to_text` with the number of the round gives five things, or ends."""
    *_, doc_to_text, doc_id, task, _ = request.args
    said = doc_to_text(document, round_idx=len(answers), previous_output=answers, previous_round_info=told)
    if not (isinstance(said, tuple) and len(said) == 5):
        return None
    visuals, text, ended, came_to, told = said
    if ended:
        return Round(None, _texts(came_to, answers), told)
    where = f"task {task!r}, document {doc_id}"
    parts = (*(shown(visual, where) for visual in visuals or []), text)
    return Round(Conversation((Turn("user", parts),)), None, told)


def _texts(came_to: Any, answers: list[str]) -> list[str]:
    """What the task makes of all rounds, where it says so as texts."""
    if isinstance(came_to, list | tuple) and all(isinstance(text, str) for text in came_to) and came_to:
        return list(came_to)
    return answers


def first_of_simple(request: Instance) -> Instance:
    """The first round of a request of several, as a request of one."""
    text, gen_kwargs, doc_to_visual, _, *where = request.args
    return replace(request, arguments=(text, gen_kwargs, doc_to_visual, *where))


def play_rounds(model: Answering, requests: Sequence[Instance]) -> list[list[str]]:
    """The answers of all rounds of each request; each round is asked of all requests together."""
    first = [model.asked(first_of_simple(request) if model.is_simple else request) for request in requests]
    documents = [model.task_dict[asked.task][asked.split][asked.doc_id] for asked in first]
    answers: list[list[str]] = [[] for _ in requests]
    told: list[Any] = [None] * len(requests)
    going = dict(enumerate(first))
    for _ in range(_MOST):
        if not going:
            return answers
        for number, answer in zip(list(going), list(model.answer(list(going.values()))), strict=True):
            answers[number].append(answer.text)
        for number in list(going):
            after = model.next_round(requests[number], documents[number], list(answers[number]), told[number])
            if after is None or after.conversation is None:
                del going[number]
                answers[number] = answers[number] if after is None or after.answers is None else after.answers
            else:
                told[number] = after.told
                going[number] = _asked(first[number], answers[number], after.conversation)
    raise FieldError(first[next(iter(going))].where, f"the task asks for more than {_MOST} rounds")


def _asked(first: Asked, answers: list[str], conversation: Conversation) -> Asked:
    """A later round of a question; what was answered tells it from others."""
    text = "\n".join([first.text, *answers])
    return replace(first, text=text, converse=lambda *_: conversation)
