"""What a decoder begins with, once contrast has tied visual tokens to its words and before its first answer.

A decoder of random weights first has to find out that a question names things, that visual tokens have names, and that
one can be looked up by the other. Here it begins with heads that do so, worked out from its own words; what to do with
them is learned, and they are trained like all other weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo_training.hard.captions import DIGITS, ORDINALS
from finepruner_lmms.demo.hard.questions import PLURAL
from finepruner_lmms.demo.hard.things import COLORS, COLORS_ZH, SIDES, SIDES_ZH, SIZES, SIZES_ZH
from finepruner_lmms.demo.outlines import SHAPES
from finepruner_lmms.demo.scenes import SHAPES_ZH


class Lookup(NamedTuple):
    """A head that looks for what has the attributes `match`, and writes down `value`, turned back from `turned`."""

    match: tuple[str, ...]
    value: tuple[str, ...]
    turned: str = ""


_WORDS = COLORS_ZH | SHAPES_ZH | SIDES_ZH | SIZES_ZH
_ASKED = {"color": "颜", "shape": "状", "plate": "牌", "number": "数", "next": "旁", "which": "哪"}
_FAMILIES = {
    "color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "side": tuple(SIDES), "plate": ("plate",),
    "digit": DIGITS,
}  # fmt: skip
_PLATE = ("color", "plate")
_BESIDE = (Lookup(_PLATE, ("color",), "by-color"), Lookup(_PLATE, ("shape", "side"), "by-side"))
_ATTRIBUTES = (
    Lookup(("size", "shape"), ("color",)), Lookup(("color", "size"), ("shape",)), Lookup(("color", "shape"), ("size",))
)  # fmt: skip
_SAYS = tuple(Lookup(_PLATE, ("digit",), ordinal) for ordinal in ORDINALS)
LOOKUPS = dict.fromkeys((1, 2, 4), _BESIDE + _ATTRIBUTES) | dict.fromkeys((3, 5, 6), _SAYS + _BESIDE)
"""By layer, of its first heads."""
COUNTS = dict.fromkeys((1, 2), (("color", "size"), ("size", "shape"))) | {3: (("color",), ("shape",))}
"""By layer, of the heads behind those: which attributes the counted things have."""
_FAST = 2  # pairs of rotary positions that turn too far over a picture for a match; the second turns little in a text
_COPIED = 0.4
_ABROAD, _HOME = -0.8, 0.4  # how much heads that look up, or count, are drawn to words, which share a direction
_EACH = 0.12  # how much the number of patches counts against a thing
_NEARBY = (3.0, 280.0, 280.0)  # how much the three fastest pairs of rotary positions count in the first layer's scores


@torch.no_grad()
def begin(decoder: nn.Module, projector: nn.Module, head: nn.Linear, turns: Mapping[str, Tensor], tokenizer) -> None:
    """All of this, in place. `turns` `[D, D]` each are the maps by which contrast has turned words, by family."""
    translated(decoder, tokenizer)
    # what the decoder ends with spells the words that contrast has tied to visual tokens
    head.weight.copy_(F.normalize(decoder.embed_tokens.weight, dim=-1))
    alike(decoder)
    phrases_gathered(decoder, projector)
    looked_up(decoder, turns, tokenizer)
    counted(decoder, tokenizer)


@torch.no_grad()
def translated(decoder: nn.Module, tokenizer) -> None:
    """A Chinese character starts out as the English word that it stands for, "stars" as "star", "##7" as "7".

    The head learns them apart.
    """
    words = decoder.embed_tokens.weight
    pairs = [*characters().items(), *((digit, f"##{digit}") for digit in DIGITS), *PLURAL.items()]
    for word, other in pairs:
        one, same = (tokenizer.convert_tokens_to_ids(token) for token in (word, other))
        words[same] = words[one]


def characters() -> dict[str, str]:
    """English word → the first Chinese character that stands for it and for no other word."""
    found = dict(_ASKED)
    for word, translation in _WORDS.items():
        others = "".join(other for other in (*_WORDS.values(), *_ASKED.values()) if other != translation)
        found[word] = next(one for one in translation if one not in others)
    return found


@torch.no_grad()
def alike(decoder: nn.Module) -> None:
    """A token looks for tokens like it, and takes over what they are.

    Queries and keys start out as the same map, as in "Mimetic initialization of self-attention layers"
    (https://arxiv.org/abs/2305.09828), and what is read is written as it is.
    """
    for layer in decoder.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        torch.nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T * _COPIED)


@torch.no_grad()
def phrases_gathered(decoder: nn.Module, projector: nn.Module) -> None:
    """The heads of the first layer look at the two words before: "plate" begins as "green plate".

    By rotary positions alone: queries and keys are the same for every word, along a direction that all words get and no
    visual token has.
    """
    words, attention = decoder.embed_tokens.weight, decoder.layers[0].self_attn
    wide, shared = attention.head_dim, _shared(decoder)
    words -= (words @ shared)[:, None] * shared
    size = words.norm(dim=1).median()
    words.copy_((F.normalize(words, dim=1) + shared) * size)  # equally much of it in all, so that none stands out
    last = projector.linear_2
    last.weight -= torch.outer(shared, shared @ last.weight)
    last.bias -= (last.bias @ shared) * shared
    # a word is normed to sqrt(D), and half of its square is along the shared direction
    strength = (words.shape[1] / 2) ** 0.5
    query, key = words.new_zeros(wide), words.new_zeros(wide)
    for pair, gain in enumerate(_NEARBY):
        length, angle = (gain * wide**0.5) ** 0.5 / strength, float(decoder.rotary_emb.inv_freq[pair]) * 1.5
        key[pair] = length
        # a query that stands 1.5 places behind a key is the same as it
        query[pair], query[pair + wide // 2] = length * math.cos(angle), -length * math.sin(angle)
    for weight, row in ((attention.q_proj.weight, query), (attention.k_proj.weight, key)):
        weight.copy_(torch.outer(row.repeat(len(weight) // wide), shared))
    attention.o_proj.weight.copy_(attention.v_proj.weight.T)


@torch.no_grad()
def looked_up(decoder: nn.Module, turns: Mapping[str, Tensor], tokenizer) -> None:
    """Heads that look for what has two of a thing's attributes, and write down another one.

    Contrast has tied visual tokens to the words of what they show, so a query for "medium" and "circle" is these words.
    What a plate has beside it and its digits are in its tokens, turned; without heads that turn them back, a decoder
    learned to look at what stands beside some plate instead, which is right in half of all cases.
    """
    for number, lookups in LOOKUPS.items():
        attention = decoder.layers[number].self_attn
        for place, (match, value, turned) in enumerate(lookups):
            _match(decoder, number, place, match, _ABROAD, tokenizer)
            basis = _span(decoder, value, attention.head_dim, tokenizer)
            some = slice(place * attention.head_dim, place * attention.head_dim + len(basis))
            attention.v_proj.weight[some] = basis @ turns[turned].to(basis) if turned else basis
            attention.o_proj.weight[:, some] = basis.T * _COPIED


@torch.no_grad()
def counted(decoder: nn.Module, tokenizer) -> None:
    """Heads that look at what has two attributes, and at the words before: the more there is, the less at words.

    A head's weights sum to 1, so the mean of what matches does not say how much matches. What words share, and visual
    tokens lack, is written to a direction of its own for each head.
    """
    shared = _shared(decoder)
    for number, counts in COUNTS.items():
        attention = decoder.layers[number].self_attn
        for place, match in enumerate(counts, len(LOOKUPS[number])):
            slow = _match(decoder, number, place, match, _HOME, tokenizer)
            if "size" not in match:
                # a thing counts once, however many patches show it
                attention.q_proj.weight[slow[-1]] = shared
                attention.k_proj.weight[slow[-1]] = -_EACH * _patches(decoder, tokenizer)
            first = place * attention.head_dim
            attention.v_proj.weight[first] = shared
            attention.o_proj.weight[:, first] = F.normalize(torch.randn(len(shared)), dim=0).to(shared)


def _match(decoder: nn.Module, layer: int, place: int, match: Sequence[str], words: float, tokenizer) -> list[int]:
    """Make the head `place` of a layer look at what has the attributes that its query has, and so much at words.

    Rows of its weights that rotary positions leave nearly as they are, the slowest first.
    """
    attention, shared = decoder.layers[layer].self_attn, _shared(decoder)
    wide, first = attention.head_dim, place * attention.head_dim
    slow = [first + at for at in (*range(_FAST, wide // 2), *range(wide // 2 + _FAST, wide))][::-1]
    basis = _span(decoder, match, len(slow), tokenizer)
    for weight, sign in ((attention.q_proj.weight, 1.0), (attention.k_proj.weight, math.copysign(1.0, words))):
        weight[first : first + wide] *= 0.1
        weight[slow[: len(basis)]] = basis
        weight[first + _FAST - 1] = sign * abs(words) * shared
    return slow


def _patches(decoder: nn.Module, tokenizer) -> Tensor:
    """The direction `[D]` along which what is large, medium or small has the logarithm of its number of patches."""
    words = decoder.embed_tokens.weight
    rows = F.normalize(words - words.mean(0), dim=-1)[tokenizer.convert_tokens_to_ids(list(SIZES))]
    number = torch.tensor([2 * math.log(side) for side in SIZES.values()]).to(words)
    return torch.linalg.pinv(rows - rows.mean(0)) @ (number - number.mean())


def _shared(decoder: nn.Module) -> Tensor:
    """The direction `[D]` that all words get."""
    words = decoder.embed_tokens.weight
    return F.normalize(torch.ones_like(words[0]), dim=0)


def _span(decoder: nn.Module, families: Sequence[str], most: int, tokenizer) -> Tensor:
    """`[<= most, D]`: orthonormal directions in which the words of those attributes differ."""
    words = decoder.embed_tokens.weight
    meant, known = F.normalize(words - words.mean(0), dim=-1), []
    for family in families:
        rows = meant[tokenizer.convert_tokens_to_ids(list(_FAMILIES[family]))]
        known.append(rows - rows.mean(0) if len(rows) > 1 else rows * 2)  # a word of its own counts for two
    rows = torch.cat(known)
    return torch.linalg.svd(rows, full_matrices=False).Vh[: min(most, len(rows))]
