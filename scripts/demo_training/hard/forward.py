"""What a decoder makes of pictures with several questions each, none of which sees another.

It is what the decoder's own layers compute for each question alone behind its picture, in a fraction of the time: a
picture is worked out once for all of its questions, nothing is worked out for padding, and questions of about the same
length look at their picture and themselves together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from demo_training.hard.packing import Packed

_GROUPS = 4


def hidden_at(decoder: nn.Module, packed: Packed, visual: Tensor, steps: Sequence[int]) -> list[Tensor]:
    """What the decoder has before the layers `steps`, and in the end, normed: `[B, L, D]` each, 0 at padding.

    `visual` `[B, K, D]` are the projected visual tokens. A picture does not look at questions.
    """
    texts = _Texts.of(packed, visual)
    device, pictures = visual.device, texts.rows * texts.before
    embedded = decoder.embed_tokens(packed.ids.to(device))
    prefix = embedded[:, : packed.prefix]
    # pictures one after another, then all questions: `[B * before + N, D]`
    hidden = torch.cat([torch.cat([prefix, visual], 1).flatten(0, 1), embedded.flatten(0, 1).index_select(0, texts.at)])
    where = packed.positions.to(device)
    where = torch.cat([where[:, : texts.before].flatten(), where.flatten()[texts.at]])
    rotary = tuple(one[0] for one in decoder.rotary_emb(hidden, where[None]))
    found = []
    for number, layer in enumerate(decoder.layers):
        if number in steps:
            found.append(hidden)
        hidden = hidden + layer.self_attn.o_proj(_attended(layer, hidden, rotary, texts))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    found.append(hidden)
    return [texts.spread(decoder.norm(one[pictures:])) for one in found]


@dataclass(frozen=True)
class _Group:
    """Questions of about the same length: `rows` `[n]` of their pictures, `at` `[n, T]` among all words, `mask`.

    Shorter ones are filled up with a word that is looked at by nothing that counts.
    """

    rows: Tensor
    at: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Texts:
    """Where the words of questions are: `at` `[N]` in a flattened batch, and the place of each among `groups`."""

    rows: int
    length: int
    before: int
    at: Tensor
    groups: list[_Group]
    back: Tensor

    @classmethod
    def of(cls, packed: Packed, visual: Tensor) -> _Texts:
        """Those of a batch."""
        device, (rows, length) = visual.device, packed.ids.shape
        before = packed.prefix + visual.shape[1]
        at, found = [], []
        for row, start, end in packed.segments:
            found.append((end - start, row, len(at)))
            at += range(row * length + start, row * length + end)
        found.sort()
        size, groups, back, filled = -(-len(found) // _GROUPS), [], [0] * len(at), 0
        for some in (found[first : first + size] for first in range(0, len(found), size)):
            most = some[-1][0]
            places = torch.tensor([[first + min(word, n - 1) for word in range(most)] for n, _, first in some])
            for n, _, first in some:
                back[first : first + n] = range(filled, filled + n)
                filled += most
            later = torch.zeros(most, most).masked_fill(~torch.ones(most, most, dtype=torch.bool).tril(), float("-inf"))
            mask = torch.cat([torch.zeros(most, before), later], 1)
            groups.append(
                _Group(torch.tensor([row for _, row, _ in some]).to(device), places.to(device), mask.to(device))
            )
        return cls(rows, length, before, torch.tensor(at).to(device), groups, torch.tensor(back).to(device))

    def spread(self, words: Tensor) -> Tensor:
        """`[N, D]` back to where the words are in a batch `[B, L, D]`."""
        there = words.new_zeros(self.rows * self.length, words.shape[-1]).index_copy(0, self.at, words)
        return there.unflatten(0, (self.rows, self.length))


def _attended(layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], texts: _Texts) -> Tensor:
    """What a layer's heads read, before the output map."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    heads, pictures = (-1, attention.head_dim), texts.rows * texts.before
    query, key, value = (
        linear(normed).unflatten(-1, heads) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    shown = [one[:pictures].unflatten(0, (texts.rows, -1)).transpose(1, 2) for one in (query, key, value)]
    asked = [one[pictures:].flatten(1) for one in (query, key, value)]
    read = []
    for group in texts.groups:
        own = [
            one.index_select(0, group.at.flatten()).unflatten(0, group.at.shape).unflatten(-1, heads) for one in asked
        ]
        words, *others = (one.transpose(1, 2) for one in own)
        seen = [
            torch.cat([one.index_select(0, group.rows), other], 2) for one, other in zip(shown[1:], others, strict=True)
        ]
        out = _looked(words, *seen, group.mask)
        read.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    alone = F.scaled_dot_product_attention(*shown, is_causal=True).transpose(1, 2).flatten(2).flatten(0, 1)
    return torch.cat([alone, torch.cat(read).index_select(0, texts.back)])


def _looked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As `scaled_dot_product_attention`, which takes up to twice as long on a CPU where heads are 12 wide."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + mask).softmax(-1) @ value
