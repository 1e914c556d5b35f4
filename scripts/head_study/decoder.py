"""A LLaVA's language model, layer by layer: prefills that stop where tokens are dropped, and go on with what is kept.

The text before the image is blind to it: its keys and values are those of the full prompt, whatever is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from head_study.worlds import VISUAL

_AT_ONCE = {"cpu": 24}  # prompts in a forward: more of them no longer fit a CPU's cache
_ON_A_GPU = 512


class Layers:
    """The decoder's layers and head."""

    def __init__(self, model: Any) -> None:
        self.model, self.decoder = model, model.model.language_model
        self.device = model.device

    def __len__(self) -> int:
        return len(self.decoder.layers)

    def run(self, number: int, hidden: Tensor) -> Tensor:
        """One layer on whole prompts `[B, L, D]`."""
        positions = torch.arange(hidden.shape[1], device=self.device)[None]
        rotary = self.decoder.rotary_emb(hidden, position_ids=positions)
        return self.decoder.layers[number](hidden, attention_mask=None, position_ids=None, position_embeddings=rotary)

    def last_row(self, number: int, hidden: Tensor) -> Tensor:
        """The last token's attention `[B, H, L]` in a layer that `hidden` `[B, L, D]` enters."""
        positions = torch.arange(hidden.shape[1], device=self.device)[None]
        attn, (query, key, _) = self._projected(number, hidden, positions)
        return (query[:, :, -1:] @ key.transpose(2, 3) * attn.scaling).softmax(-1)[:, :, 0]

    def prefix(self, number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of text `[1, P, D]` that stands first."""
        _, (_, key, value) = self._projected(number, hidden, torch.arange(hidden.shape[1], device=self.device)[None])
        return key, value

    def behind(
        self, number: int, hidden: Tensor, positions: Tensor, prefix: tuple[Tensor, Tensor], seen: Tensor
    ) -> Tensor:
        """One layer for what follows the text before the image, `[B, R, D]` at `positions` `[B, R]`."""
        block = self.decoder.layers[number]
        attn, (query, key, value) = self._projected(number, hidden, positions)
        key, value = (
            torch.cat([first.expand(len(hidden), -1, -1, -1), rest], dim=2)
            for first, rest in zip(prefix, (key, value), strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=attn.scaling)
        hidden = hidden + attn.o_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + block.mlp(block.post_attention_layernorm(hidden))

    def says(self, leaving: Tensor, answers: Tensor) -> Tensor:
        """Whether each prompt is followed by its answer `[B, A]`, `[B]` bool; `leaving` `[B, ..., D]` is of prompt
        and answer, but for the answer's end."""
        logits = self.model.lm_head(self.decoder.norm(leaving[:, -answers.shape[1] :]))
        return (logits.argmax(-1) == answers).all(-1)

    def _projected(self, number: int, hidden: Tensor, positions: Tensor) -> tuple[Any, tuple[Tensor, Tensor, Tensor]]:
        block = self.decoder.layers[number]
        attn, inside = block.self_attn, block.input_layernorm(hidden)
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        query, key, value = (
            project(inside).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        return attn, (query, key, value)


@dataclass
class Group:
    """Questions whose prompts and answers are equally long: what enters layers, and the last token's attention."""

    numbers: list[int]  # places in the deck
    start: int  # the column of the first visual token
    hidden: dict[int, Tensor]  # by layer, what enters it `[Q, L, D]`; the number of layers: what leaves the decoder
    prefix: list[tuple[Tensor, Tensor]]  # keys and values of the text before the image, a pair a layer
    answers: Tensor  # [Q, A]


class Prefill:
    """Prompts with their visual tokens `[Q, V, D]`, run until the last layer of `stops`, before which tokens go.

    `attention` `[Q, layers, H, V]` is that of the last prompt token to the image, in every layer run. A choice of
    tokens is judged by running the layers behind the drop on what is kept: what `finepruner_lmms.generate` computes
    (a test compares them), thousands of choices in the time of one.
    """

    def __init__(
        self, layers: Layers, prompts: Sequence[list[int]], answers: Sequence[list[int]], visual: Tensor,
        stops: Collection[int],
    ) -> None:  # fmt: skip
        self.layers, self.visual = layers, visual.shape[1]
        self._prompts, self._answers = prompts, answers
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, (ids, answer) in enumerate(zip(prompts, answers, strict=True)):
            alike[len(ids), len(answer)].append(number)
        self.attention = torch.empty(0)
        self.groups = [self._run(numbers, visual, stops) for numbers in alike.values()]

    @torch.no_grad()
    def _run(self, numbers: list[int], visual: Tensor, stops: Collection[int]) -> Group:
        device, layers = self.layers.device, self.layers
        image = layers.model.config.image_token_id
        said = [self._prompts[n] + self._answers[n][:-1] for n in numbers]
        start, behind = said[0].index(image), len(self._prompts[numbers[0]]) - VISUAL
        words = torch.tensor([[one for one in ids if one != image] for ids in said], device=device)
        embedded = layers.decoder.embed_tokens(words)
        hidden = torch.cat([embedded[:, :start], visual[numbers], embedded[:, start:]], dim=1)
        prompt = behind + self.visual  # how long the prompt is with the visual tokens that are left
        kept: dict[int, Tensor] = {}
        prefix, rows, last = [], [], max(stops)
        first = hidden[:1, :start]
        for number in range(len(layers)):
            if number in stops:
                kept[number] = hidden
            prefix.append(layers.prefix(number, first))
            if number < last:
                rows.append(layers.last_row(number, hidden[:, :prompt])[..., start : start + self.visual])
                hidden = layers.run(number, hidden)
                first = hidden[:1, :start]
            elif number + 1 < len(layers):
                first = layers.run(number, first)
        if len(layers) in stops:
            kept[len(layers)] = hidden
        if rows:
            found = torch.stack(rows, 1)
            if not self.attention.numel():
                self.attention = found.new_zeros(len(self._prompts), *found.shape[1:])
            self.attention[numbers] = found
        answers = torch.tensor([self._answers[n] for n in numbers], device=device)
        return Group(numbers, start, kept, prefix, answers)

    def unpruned(self) -> Tensor:
        """Which questions are answered rightly with all of these visual tokens, `[Q]` bool; `stops` names the end."""
        right = torch.zeros(len(self._prompts), dtype=torch.bool)
        for group in self.groups:
            right[group.numbers] = self.layers.says(group.hidden[len(self.layers)], group.answers).cpu()
        return right

    @torch.no_grad()
    def judge(self, kept: Tensor, layer: int) -> Tensor:
        """Which questions are answered rightly, `[C, Q]` bool, if of each only the tokens `kept` `[C, Q, R]`,
        ascending, enter `layer`. Survivors keep their positions; where two choices keep the same, one run serves both.
        """
        right = torch.zeros(kept.shape[:2], dtype=torch.bool)
        for group in self.groups:
            rows = kept[:, group.numbers].flatten(0, 1)  # [choices * Q, R], the questions of a choice in turn
            row = torch.arange(len(group.numbers), device=rows.device).repeat(len(kept))
            distinct, place = torch.cat([row[:, None], rows], dim=1).unique(dim=0, return_inverse=True)
            parts = distinct.split(_AT_ONCE.get(self.layers.device.type, _ON_A_GPU))
            found = torch.cat([self._answer(group, part[:, 0], part[:, 1:], layer) for part in parts])
            right[:, group.numbers] = found[place].unflatten(0, (len(kept), -1)).cpu()
        return right

    def _answer(self, group: Group, rows: Tensor, kept: Tensor, layer: int) -> Tensor:
        """Whether `rows` of a group are answered rightly with the tokens `kept` `[rows, R]` of each."""
        entering = group.hidden[layer]
        behind = torch.arange(group.start + self.visual, entering.shape[1], device=kept.device)
        index = torch.cat([group.start + kept, behind.expand(len(rows), -1)], dim=1)
        hidden = entering[rows[:, None], index]
        seen = torch.ones(index.shape[1], group.start + index.shape[1], dtype=torch.bool, device=kept.device)
        seen = seen.tril(group.start)
        for number in range(layer, len(self.layers)):
            hidden = self.layers.behind(number, hidden, index, group.prefix[number], seen)
        return self.layers.says(hidden, group.answers[rows])


def best(scores: Tensor, retained: int) -> Tensor:
    """The tokens that stay, `[..., R]` ascending: the `retained` best of `scores` `[..., V]`, the lower on a tie."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :retained].sort(dim=-1).values
