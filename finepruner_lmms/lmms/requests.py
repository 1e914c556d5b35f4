"""What lmms-eval asks, in either of its two interfaces, read as one kind of question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import Instance

from finepruner_lmms.asking.conversation import Conversation, Turn, from_messages, shown
from finepruner_lmms.checkpoints.images import whole_files
from finepruner_lmms.errors import FieldError


@dataclass(frozen=True, eq=False)
class Asked:
    """A question of a task, about the document `doc_id` of a split; `text` tells it from others.

    `converse` makes the conversation of a document; its second argument says in errors where that is.
    """

    task: str
    split: str
    doc_id: int
    text: str
    gen_kwargs: Mapping[str, Any]
    converse: Callable[[Any, str], Conversation]

    @property
    def where(self) -> str:
        """For errors."""
        return f"task {self.task!r}, document {self.doc_id}"

    def conversation(self, read: Callable[[], Any]) -> Conversation:
        """The conversation of the document that `read` returns, its pictures read to their end.

        `FieldError` saying where a picture cannot be.
        """
        try:
            with whole_files():
                return self.converse(read(), self.where)
        except (OSError, SyntaxError) as error:  # Pillow raises either where a file is damaged
            raise FieldError(self.where, f"its image cannot be read ({error})") from error


def of_simple(request: Instance) -> Asked:
    """lmms-eval's simple interface: the question as text, and a function that gives what it shows."""
    text, gen_kwargs, doc_to_visual, doc_id, task, split = request.args

    def converse(document: Any, where: str) -> Conversation:
        visuals = [] if doc_to_visual is None else doc_to_visual(document) or []
        return Conversation((Turn("user", (*(shown(visual, where) for visual in visuals), text)),))

    return Asked(str(task), split, doc_id, text, gen_kwargs, converse)


def of_chat(request: Instance) -> Asked:
    """lmms-eval's chat interface: a function that gives the messages of a document."""
    text, doc_to_messages, gen_kwargs, doc_id, task, split = request.args

    def converse(document: Any, where: str) -> Conversation:
        return from_messages(doc_to_messages(document), where)

    return Asked(str(task), split, doc_id, text, gen_kwargs, converse)
