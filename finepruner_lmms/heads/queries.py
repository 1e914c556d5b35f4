"""Which words ask: a weight for each word of the text after the image, by which their attention rows are added up.

The query strategies of the LLaVA-FinePruner-Head code base. A row of the batch without any text after its image asks
by the last prompt token's attention, as `query="last"` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from finepruner_lmms.heads.named import Named, caller
from finepruner_lmms.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Words:
    """The words after the image, T of them in the longest text of B samples.

    `present` `[B, T]` says which there are; shorter texts stand on the right. `prefix` `[B]` counts the tokens before
    the image, none of which sees it. `find_mass` returns the words' attention to the image, `[B, T]`.
    """

    present: Tensor
    prefix: Tensor
    find_mass: Callable[[], Tensor]

    @cached_property
    def mass(self) -> Tensor:
        """`[B, T]`: each word's attention to the image, all heads' together; -inf where there is none."""
        return self.find_mass().masked_fill(~self.present, float("-inf"))

    def or_last(self, asked: Tensor, last: Tensor) -> Tensor:
        """`asked` `[B, H, V]`, and in samples without words the last prompt token's rows, `last` `[B, H, V]`."""
        return torch.where(self.present.any(1)[:, None, None], asked, last)


Weigh = Callable[[Words], "Tensor"]
QUERIES: Named[Weigh] = Named("query", "query", ("last",))


def register_query(name: str) -> Callable[[Weigh], Weigh]:
    """Add a query strategy: from the `Words` to the weight of each, `[B, T]`; 0 where no word is.

    `FieldError` for a name that is taken by another function, or is none.
    """
    return QUERIES.register(name, caller())


def query_weights(name: str, words: Words) -> Tensor:
    """How much each word's row counts under the strategy `name`, `[B, T]`."""
    return QUERIES.find(name)(words)


def _newest(present: Tensor, count: int) -> Tensor:
    """Which rows are among the last `count`, `[B, T]` bool."""
    size = present.shape[1]
    return present & (torch.arange(size, device=present.device) >= size - count)


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
def last_three(words: Words) -> Tensor:
    """The mean of the last 3 words."""
    return _mean(_newest(words.present, 3))


@register_query("last_5_tokens")
def last_five(words: Words) -> Tensor:
    """The mean of the last 5 words."""
    return _mean(_newest(words.present, 5))


@register_query("text_tokens_only")
def all_text(words: Words) -> Tensor:
    """The mean of all words after the image."""
    return _mean(words.present)


@register_query("weighted_recent")
def weighted_recent(words: Words) -> Tensor:
    """The last 5 words, the later the heavier."""
    rising = _rising(_newest(words.present, 5))
    return rising / rising.sum(1, keepdim=True).clamp_min(1e-30)


@register_query("system_and_text")
def system_and_text(words: Words) -> Tensor:
    """The mean over the prefix, which sees no image, and the words: the text's mean, scaled."""
    return words.present / (words.present.sum(1) + words.prefix)[:, None].clamp_min(1)


@register_query("attention_weighted")
def attention_weighted(words: Words) -> Tensor:
    """A softmax over the rows' attention to the image, the prefix's zero rows among them."""
    top = words.mass.amax(1, keepdim=True).clamp_min(0)
    weight = (words.mass - top).exp()
    return weight / (weight.sum(1, keepdim=True) + words.prefix[:, None] * (-top).exp())


@register_query("max_attention_token")
def most_attentive(words: Words) -> Tensor:
    """The one word that attends to the image most."""
    place = torch.arange(words.present.shape[1], device=words.present.device)
    return (place == words.mass.argmax(1, keepdim=True)) & words.present


@register_query("adaptive_by_length")
def adaptive_by_length(words: Words) -> Tensor:
    """Up to 3 words: all; up to 10: weighted recent; more: weighted by attention."""
    count = words.present.sum(1, keepdim=True)
    recent, attentive = weighted_recent(words), attention_weighted(words)
    return torch.where(count <= 3, _mean(words.present), torch.where(count <= 10, recent, attentive))


@register_query("adaptive_text_visual")
def adaptive_text_visual(words: Words) -> Tensor:
    """Up to 5 words: the last 3; more: all, the later the heavier."""
    count = words.present.sum(1, keepdim=True)
    return torch.where(count <= 5, _mean(_newest(words.present, 3)), _rising(words.present))


def known_queries() -> tuple[str, ...]:
    """The names of all query strategies: `last`, the last prompt token, and the others sorted; plug-ins included."""
    return ("last", *QUERIES.known())
