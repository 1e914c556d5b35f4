"""A deck of questions about fresh scenes, with what every decoder layer of the full prompt sees.

The full prompt runs once; a choice of tokens is then judged by running the layers behind the drop on what is kept.
That is what `finepruner_lmms.generate` computes (a test compares them), thousands of choices in the time of one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import finepruner_lmms as fp
from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.checkpoints.prompts import vicuna_v1
from finepruner_lmms.demo.question import Question
from finepruner_lmms.demo.questions import ask
from finepruner_lmms.demo.scenes import make_scene

# kinds whose answers need the picture and are one token; those told in the text measure nothing here
KINDS = ("exist", "color", "shape", "digit", "count", "verify", "pick", "number", "read", "choice", "choice_zh")
FIRST_SCENE = 5_000_000  # behind every scene that a benchmark of the demo shows
VISUAL = 576
_AT_ONCE = 24  # prompts in a forward: more of them no longer fit a CPU's cache


@dataclass(frozen=True)
class Asked:
    """One question: the scene it is about, its prompt and the token that answers it."""

    scene: int
    kind: str
    ids: list[int]
    answer: int
    objects: np.ndarray
    subject: np.ndarray


@dataclass
class Group:
    """Questions whose prompts are equally long: what enters each layer, and the last token's attention to the image."""

    numbers: list[int]  # places in the deck
    start: int  # the column of the first visual token
    hidden: Tensor  # [layers + 1, Q, L, D], what enters layer i; the last is what leaves the decoder
    attention: Tensor  # [Q, layers, H, N]
    prefix: list[tuple[Tensor, Tensor]]  # keys and values of the text before the image, a pair a layer


class Deck:
    """Questions, answered by `model` under any choice of tokens."""

    def __init__(
        self,
        pretrained: str,
        split: str,
        scenes: int,
        per_scene: int = 3,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.processor = fp.load_model(pretrained, dtype=dtype)
        self.decoder = self.model.model.language_model
        self.asked = list(questions(self.processor, self.model.config, split, scenes, per_scene, seed))
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, asked in enumerate(self.asked):
            by_length[len(asked.ids)].append(number)
        features = self._encode(split)
        self.groups = [self._run(numbers, features) for numbers in by_length.values()]
        self.attention = torch.zeros(len(self.asked), *self.groups[0].attention.shape[1:], dtype=dtype)
        self.vanilla = torch.zeros(len(self.asked), dtype=torch.bool)
        for group in self.groups:
            self.attention[group.numbers] = group.attention
            self.vanilla[group.numbers] = self._right(group.hidden[-1], group.numbers)
        self.scenes = np.array([asked.scene for asked in self.asked])
        self.objects = torch.from_numpy(np.stack([asked.objects for asked in self.asked]))
        self.subject = torch.from_numpy(np.stack([asked.subject for asked in self.asked]))

    def _encode(self, split: str) -> dict[int, Tensor]:
        numbers = sorted({asked.scene for asked in self.asked})
        features = {}
        for number in numbers:
            image = make_scene(split, number).image()
            pixels = preprocess(self.processor.image_processor, image, "pad")[None]
            features[number] = fp.encode_images(self.model, pixels).projected[0]
        return features

    @torch.no_grad()
    def _run(self, numbers: list[int], features: dict[int, Tensor]) -> Group:
        ids = torch.tensor([self.asked[number].ids for number in numbers])
        start = int((ids[0] == self.model.config.image_token_id).int().argmax())
        hidden = self.decoder.embed_tokens(ids)
        hidden[:, start : start + VISUAL] = torch.stack([features[self.asked[number].scene] for number in numbers])
        entering, rows, prefix = [hidden], [], []
        positions = torch.arange(ids.shape[1])[None]
        for layer in self.decoder.layers:
            rows.append(self._last_row(layer, hidden, positions)[..., start : start + VISUAL])
            prefix.append(self._keys_values(layer, hidden[:1, :start], positions[:, :start]))
            hidden = self._layer(layer, hidden, positions)
            entering.append(hidden)
        return Group(numbers, start, torch.stack(entering), torch.stack(rows, 1), prefix)

    def _layer(self, layer, hidden: Tensor, positions: Tensor) -> Tensor:
        rotary = self.decoder.rotary_emb(hidden, position_ids=positions)
        return layer(hidden, attention_mask=None, position_ids=None, position_embeddings=rotary)

    def _keys_values(self, layer, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        attn, inside = layer.self_attn, layer.input_layernorm(hidden)
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        key, value = (
            project(inside).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for project in (attn.k_proj, attn.v_proj)
        )
        return apply_rotary_pos_emb(key, key, cos, sin)[1], value

    def _last_row(self, layer, hidden: Tensor, positions: Tensor) -> Tensor:
        attn, inside = layer.self_attn, layer.input_layernorm(hidden)
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        query = attn.q_proj(inside[:, -1:]).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        key = attn.k_proj(inside).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        query, _ = apply_rotary_pos_emb(query, query, cos[:, -1:], sin[:, -1:])
        key, _ = apply_rotary_pos_emb(key, key, cos, sin)
        return (query @ key.transpose(2, 3) * attn.scaling).softmax(-1)[:, :, 0]

    def _right(self, leaving: Tensor, numbers: list[int]) -> Tensor:
        logits = self.model.lm_head(self.decoder.norm(leaving[:, -1:]))[:, 0]
        return logits.argmax(-1) == torch.tensor([self.asked[number].answer for number in numbers])

    def answer(self, scores: Tensor, retained: int, layer: int = 2) -> Tensor:
        """Which questions are answered rightly, `[Q]` bool, if the `retained` best of `scores` `[Q, N]` stay.

        The others are dropped before `layer`; survivors keep their positions.
        """
        return self.answer_all([scores], retained, layer)[0]

    @torch.no_grad()
    def answer_all(self, choices: Sequence[Tensor], retained: int, layer: int = 2) -> Tensor:
        """`answer` of several scores, `[choices, Q]`. Where two keep the same tokens, one run serves both."""
        kept = torch.stack(
            [s.argsort(dim=1, descending=True, stable=True)[:, :retained].sort(dim=1).values for s in choices]
        )
        right = torch.zeros(len(choices), len(self.asked), dtype=torch.bool)
        for group in self.groups:
            rows = kept[:, group.numbers].flatten(0, 1)  # [choices * Q, R], the questions of a choice in turn
            row = torch.arange(len(group.numbers)).repeat(len(choices))
            distinct, place = torch.cat([row[:, None], rows], dim=1).unique(dim=0, return_inverse=True)
            found = torch.cat(
                [self._answer(group, part[:, 0], part[:, 1:], layer) for part in distinct.split(_AT_ONCE)]
            )
            right[:, group.numbers] = found[place].unflatten(0, (len(choices), -1))
        return right

    def _answer(self, group: Group, rows: Tensor, kept: Tensor, layer: int) -> Tensor:
        """Whether `rows` of a group are answered rightly with the tokens `kept` `[rows, R]` of each."""
        behind = torch.arange(group.start + VISUAL, group.hidden.shape[2]).expand(len(rows), -1)
        index = torch.cat([group.start + kept, behind], dim=1)
        hidden = group.hidden[layer, rows[:, None], index]
        # text before the image is blind to it: its keys and values are those of the full prompt
        seen = torch.ones(index.shape[1], group.start + index.shape[1], dtype=torch.bool).tril(group.start)
        for number in range(layer, len(self.decoder.layers)):
            hidden = self._behind_prefix(group, number, hidden, index, seen)
        return self._right(hidden, [group.numbers[row] for row in rows.tolist()])

    def _behind_prefix(self, group: Group, number: int, hidden: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """One decoder layer for what follows the text before the image."""
        block = self.decoder.layers[number]
        attn, inside = block.self_attn, block.input_layernorm(hidden)
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=positions)
        query, key, value = (
            project(inside).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        keys, values = group.prefix[number]
        key = torch.cat([keys.expand(len(hidden), -1, -1, -1), key], dim=2)
        value = torch.cat([values.expand(len(hidden), -1, -1, -1), value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=attn.scaling)
        hidden = hidden + attn.o_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + block.mlp(block.post_attention_layernorm(hidden))


def questions(processor, config, split: str, scenes: int, per_scene: int, seed: int):
    """`per_scene` questions of different kinds about each of `scenes` scenes of a split."""
    rng = random.Random(seed)
    for number in range(FIRST_SCENE, FIRST_SCENE + scenes):
        scene = make_scene(split, number)
        found: list[Question] = []
        for kind in rng.sample(KINDS, len(KINDS)):
            question = ask(scene, kind, rng)
            if question is not None and len(found) < per_scene:
                found.append(question)
        for question in found:
            text = vicuna_v1(question.prompt(), has_image=True).replace("<image>", "<image>" * VISUAL)
            reply = question.letter if question.options else question.answer
            (answer,) = processor.tokenizer(reply, add_special_tokens=False)["input_ids"]
            subject = np.zeros(VISUAL, dtype=bool)
            for thing in question.subject:
                subject[thing.tokens()] = True
            ids = processor.tokenizer(text)["input_ids"]
            yield Asked(number, question.kind, ids, answer, scene.object_tokens(), subject)
