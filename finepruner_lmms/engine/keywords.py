"""The words of a question that name what can be seen, as a language model's tokens: what MMTok reads of it."""

from __future__ import annotations

import re
import weakref
from typing import Any

import torch
from torch import Tensor

from finepruner_lmms.engine.clip import bare_question
from finepruner_lmms.engine.parts import word_embeddings
from finepruner_lmms.errors import FieldError

_WORD = re.compile(r"\b\w+\b")
_LEFT_OUT = """
a an the is are was were be been being have has had do does did it they he she we you i what where when why how who
which and or but so if then question answer to for with by from at into onto upon
"""
_SAY_NOTHING_SEEN = frozenset(_LEFT_OUT.split())
"""The words that MMTok's released code leaves out, in whatever case."""
_tokenizers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def remember_tokenizer(model: Any, tokenizer: Any) -> None:
    """`model` reads what `tokenizer` makes of words; whoever loads both says so."""
    if tokenizer is not None:
        _tokenizers[model] = tokenizer


def keywords(question: str) -> str:
    """The question's words but those that name nothing to be seen, or all of it where none is left.

    LLaVA's instructions on the form of the answer are no part of it.
    """
    bare = bare_question(question)
    return " ".join(word for word in _WORD.findall(bare) if word.lower() not in _SAY_NOTHING_SEEN) or bare


def keyword_embeddings(model: Any, questions: list[str], device: torch.device) -> list[Tensor]:
    """The language model's embeddings of each question's keywords, `[M, D]` on `device`; M may be 0.

    `FieldError` where the model's tokenizer is not known.
    """
    if (tokenizer := _tokenizers.get(model)) is None:
        problem = "'keywords' needs the model's tokenizer, which is known where load_model read the model"
        raise FieldError("words", problem, value="keywords", fix="load it so, or take words=all")
    ids = [tokenizer(keywords(one), add_special_tokens=False, verbose=False)["input_ids"] for one in questions]
    return [word_embeddings(model, torch.tensor(one, dtype=torch.long)).to(device) for one in ids]
