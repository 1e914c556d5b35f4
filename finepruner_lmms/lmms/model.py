"""The models of lmms-eval: `llava_finepruner` and `finepruner`, one class for each of its two interfaces."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance

from finepruner_lmms.lmms.pruned_model import PrunedModel
from finepruner_lmms.lmms.requests import Asked, of_chat, of_simple
from finepruner_lmms.lmms.rounds import Round, chat_round, simple_round

__all__ = ["FinePruner", "LlavaFinePruner"]


class LlavaFinePruner(PrunedModel):
    """The simple interface: a question as text, and what it shows. lmms-eval takes it with `--force_simple`."""

    is_simple = True

    def asked(self, request: Instance) -> Asked:
        """As `of_simple` reads it."""
        return of_simple(request)

    def next_round(self, request: Instance, document: Any, answers: list[str], told: Any) -> Round | None:
        """As `simple_round` reads it."""
        return simple_round(request, document, answers, told)


class FinePruner(PrunedModel):
    """The chat interface: messages, with earlier turns and several images where a task has them."""

    is_simple = False

    def asked(self, request: Instance) -> Asked:
        """As `of_chat` reads it."""
        return of_chat(request)

    def next_round(self, request: Instance, document: Any, answers: list[str], told: Any) -> Round | None:
        """As `chat_round` reads it."""
        return chat_round(request, document, answers, told)
