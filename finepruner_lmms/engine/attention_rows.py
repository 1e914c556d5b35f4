"""Single rows of attention, recomputed in float32 from what a decoder layer got and from its cached keys.

No full attention map is ever built, so SDPA or flash attention stays on in every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finepruner_lmms.engine.prompt_layout import Layout

TEXT_ROWS = 64
"""So many rows of text are computed at a time: each takes a row of logits over the whole prompt for every head."""


def split_heads(projected: Tensor, attn: Any) -> Tensor:
    """`[B, L, H * head_dim]` → `[B, H, L, head_dim]`."""
    return projected.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)


def visual_rows(
    inside: Tensor, attn: Any, rotary: tuple[Tensor, Tensor], keys: Tensor, layout: Layout, rows: int, skip: int = 0
) -> Tensor:
    """The attention of the last `rows` tokens but `skip` to the visual tokens, `[B, H, rows, V]`, in float32.

    `inside` `[B, L, D]` is what the attention layer `attn` gets, `keys` `[B, KV heads, L, head_dim]` are rotated. The
    softmax runs over all that a token sees.
    """
    length = inside.shape[1]
    last = slice(length - skip - rows, length - skip)
    query, (cos, sin) = split_heads(attn.q_proj(inside[:, last]), attn), rotary
    query, _ = apply_rotary_pos_emb(query, query, cos[:, last], sin[:, last])
    # query heads of one group share their keys; folding them into the rows avoids repeating the keys
    grouped = query.float().unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    logits = (grouped @ keys.float().transpose(2, 3)).unflatten(2, (-1, rows)).flatten(1, 2) * attn.scaling
    seen = layout.valid[:, None, None]
    if rows > 1 or skip:
        place = torch.arange(length, device=inside.device)
        # a padding row sees itself, so that its softmax is one of numbers
        seen = (place <= place[last, None]) & (seen | (place == place[last, None]))
    columns = layout.columns[:, None, None].expand(-1, logits.shape[1], rows, -1)
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return weights.gather(3, columns) * layout.present[:, None, None]
