"""Which words ask: from the attention of the text behind an image to one row a head.

The query strategies of the LLaVA-FinePruner-Head code base. The rows of `text` `[B, H, T, V]` are the words behind the
image, those of shorter texts on the right; `present` `[B, T]` says which there are; `prefix` `[B]` counts the tokens
before the image, none of which sees it. A row without any word has the last prompt token's attention, `last`
`[B, H, V]`. Each function returns `[B, H, V]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]
_QUERIES: dict[str, Weigh] = {}


def register_query(name: str) -> Callable[[Weigh], Weigh]:
    """Add a query strategy: from `text`, `present` and `prefix` to the weight of each row, `[B, T]`."""

    def add(function: Weigh) -> Weigh:
        _QUERIES[name] = function
        return function

    return add


def query_rows(name: str, last: Tensor, text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The rows that `name` asks by, `[B, H, V]`."""
    if not text.shape[2]:
        return last
    weights = _QUERIES[name](text, present, prefix)
    asked = torch.einsum("bhtv,bt->bhv", text, weights.to(text.dtype))
    return torch.where(present.any(1)[:, None, None], asked, last)


def _newest(present: Tensor, count: int) -> Tensor:
    """Which rows are among the last `count`, `[B, T]` bool."""
    words = present.shape[1]
    return present & (torch.arange(words, device=present.device) >= words - count)


def _mean(rows: Tensor) -> Tensor:
    """Equal weights for `rows` `[B, T]` bool."""
    return rows / rows.sum(1, keepdim=True).clamp_min(1)


def _rising(rows: Tensor) -> Tensor:
    """Weights from 0.5 for the first of `rows` `[B, T]` to 1 for the last."""
    count = rows.sum(1, keepdim=True)
    place = rows.long().cumsum(1) - 1
    # a single row is the first of its kind, as in a linspace of one
    return (0.5 + 0.5 * place / (count - 1).clamp_min(1)) * rows


@register_query("last_n_tokens")
def last_three(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The mean of the last 3 words."""
    return _mean(_newest(present, 3))


@register_query("last_5_tokens")
def last_five(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The mean of the last 5 words."""
    return _mean(_newest(present, 5))


@register_query("text_tokens_only")
def all_text(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The mean of all words behind the image."""
    return _mean(present)


@register_query("weighted_recent")
def weighted_recent(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The last 5 words, the later the heavier."""
    rising = _rising(_newest(present, 5))
    return rising / rising.sum(1, keepdim=True).clamp_min(1e-30)


@register_query("system_and_text")
def system_and_text(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The mean over the prefix, which sees no image, and the words: the text's mean, scaled."""
    return present / (present.sum(1) + prefix)[:, None].clamp_min(1)


@register_query("attention_weighted")
def attention_weighted(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """A softmax over the rows' attention to the image, the prefix's zero rows among them."""
    mass = text.sum((1, 3)).masked_fill(~present, float("-inf"))
    top = mass.amax(1, keepdim=True).clamp_min(0)
    weight = (mass - top).exp()
    return weight / (weight.sum(1, keepdim=True) + prefix[:, None] * (-top).exp())


@register_query("max_attention_token")
def most_attentive(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """The one word that attends to the image most."""
    mass = text.sum((1, 3)).masked_fill(~present, float("-inf"))
    place = torch.arange(mass.shape[1], device=mass.device)
    return (place == mass.argmax(1, keepdim=True)) & present


@register_query("adaptive_by_length")
def adaptive_by_length(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """Up to 3 words: all; up to 10: weighted recent; more: weighted by attention."""
    words = present.sum(1, keepdim=True)
    recent, attentive = weighted_recent(text, present, prefix), attention_weighted(text, present, prefix)
    return torch.where(words <= 3, _mean(present), torch.where(words <= 10, recent, attentive))


@register_query("adaptive_text_visual")
def adaptive_text_visual(text: Tensor, present: Tensor, prefix: Tensor) -> Tensor:
    """Up to 5 words: the last 3; more: all, the later the heavier."""
    words = present.sum(1, keepdim=True)
    return torch.where(words <= 5, _mean(_newest(present, 3)), _rising(present))


QUERIES = ("last", *sorted(_QUERIES))
