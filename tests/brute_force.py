"""The oracle: every layer over the whole row, dropped tokens as masked columns, no cache, no padding, no batch.

Written without any of the package's code: selection by sorting in Python, attention as a plain softmax.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from conftest import IMAGE
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

Choose = Callable[[int, Tensor, list[int], int], list[int]]


def best(scores: Tensor, alive: list[int], count: int) -> list[int]:
    """The `count` best of the visual tokens `alive`, the lower one on a tie, ascending."""
    return sorted(sorted(alive, key=lambda token: (-float(scores[token]), token))[:count])


@torch.no_grad()
def answer(
    model,
    row: dict[str, Tensor],
    stages: dict[int, int],
    choose: Choose,
    steps: int,
    renumber: bool = False,
    next_layer: bool = False,
) -> tuple[Tensor, dict[int, list[int]]]:
    """Greedy logits `[steps, V]` of one unpadded row, and the visual tokens kept from each stage on.

    `choose(layer, attention [H, N], alive, count)` names the tokens to keep; `stages` maps layers to counts. The
    attention is that of the layer before the drop, or with `next_layer` what the layer behind it would compute.
    """

    def attend(layer, hidden, positions, seen):
        attn, x, length = layer.self_attn, layer.input_layernorm(hidden), hidden.shape[1]
        q, k, v = (
            p(x).view(1, length, -1, attn.head_dim).transpose(1, 2) for p in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *decoder.rotary_emb(hidden, position_ids=positions[None]))
        k, v = repeat_kv(k, attn.num_key_value_groups), repeat_kv(v, attn.num_key_value_groups)
        allowed = torch.ones(length, length).tril().bool() & (seen[None] | torch.eye(length, dtype=torch.bool))
        return (q @ k.transpose(2, 3) * attn.scaling).masked_fill(~allowed, -torch.inf).softmax(-1), v

    decoder, ids = model.model.language_model, row["input_ids"][0]
    visual = (ids == IMAGE).nonzero().squeeze(1).tolist()
    embedded = decoder.embed_tokens(ids)
    if visual:
        features = model.get_image_features(row["pixel_values"]).pooler_output[0]
        embedded = embedded.clone()
        embedded[visual] = features
    kept: dict[int, list[int]] = {}
    logits, new = [], []
    for step in range(steps):
        hidden = torch.cat([embedded, decoder.embed_tokens(torch.tensor(new, dtype=torch.long))])[None]
        length = hidden.shape[1]
        alive, seen, attention = list(range(len(visual))), torch.ones(length, dtype=torch.bool), None
        positions = torch.arange(length)
        for number, layer in enumerate(decoder.layers):
            if number in stages and visual:
                if step == 0:
                    if next_layer:
                        attention, _ = attend(layer, hidden, positions, seen)
                    last = attention[0, :, len(ids) - 1][:, visual]
                    kept[number] = choose(number, last, alive, stages[number])
                alive = kept[number]
                seen[[column for token, column in enumerate(visual) if token not in alive]] = False
                if renumber:
                    positions = (seen.long().cumsum(0) - 1).clamp(min=0)
            attention, v = attend(layer, hidden, positions, seen)
            hidden = hidden + layer.self_attn.o_proj((attention @ v).transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits.append(model.lm_head(decoder.norm(hidden))[0, -1])
        new.append(int(logits[-1].argmax()))
    return torch.stack(logits), kept
