"""Walking through decoder layers without the model around them: rows of prompts, and single tokens after these."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from finepruner_lmms.engine.attention_rows import split_heads
from finepruner_lmms.engine.prompt_state import LastToken
from finepruner_lmms.engine.versions import cache_keyword

Rotary = tuple[Tensor, Tensor]
CHUNK = 8192
"""So many tokens go through the layers at a time: enough to fill the device, few enough for what they need in them."""


def rotary_of(decoder: Any, like: Tensor, positions: Tensor) -> Rotary:
    """The cosines and sines of `positions` `[R, L]`, in the type of `like`."""
    cos, sin = decoder.rotary_emb(like, position_ids=positions)
    return cos, sin


def rotate(queries: Tensor, keys: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Both `[R, heads, L, head_dim]` at the positions of `rotary`."""
    turned = apply_rotary_pos_emb(queries, keys, *rotary)
    return turned[0], turned[1]


class Passage:
    """Rows of prompts on their way through layers `start` to `end` of a decoder, a part of the rows at a time.

    `keys` and `values` hold `[R, KV heads, L, head_dim]` for each of these layers, `hidden` what leaves the last one:
    `[R, L, D]`, or the last token's `[R, 1, D]` where it is the decoder's last. `inside` is what the attention of the
    last layer got, if it is not; of the layers `watched`, `asking` holds the last token.
    """

    def __init__(self, decoder: Any, start: int, end: int, watched: Collection[int] = ()) -> None:
        self.decoder, self.start, self.end = decoder, start, end
        self.last = end == len(decoder.layers)
        self._asking: dict[int, list[LastToken]] = {layer: [] for layer in range(start, end) if layer in watched}
        self._hidden: list[Tensor] = []
        self._inside: list[Tensor] = []
        self._keys: list[list[Tensor]] = [[] for _ in range(start, end)]
        self._values: list[list[Tensor]] = [[] for _ in range(start, end)]

    def run(self, hidden: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Take some rows through: `hidden` `[R, L, D]`, `positions` `[R, L]`; `valid` `[R, L]`, None if all are."""
        config, cache = self.decoder.config, DynamicCache(config=self.decoder.config)
        rotary = rotary_of(self.decoder, hidden, positions)
        mask = create_causal_mask(
            config, hidden, valid, cache, positions, layer_idx=self.start, allow_is_causal_skip=valid is None
        )
        for index in range(self.start, self.end):
            layer = self.decoder.layers[index]
            if index == self.end - 1 and not self.last:
                self._inside.append(layer.input_layernorm(hidden))
            if index in self._asking:
                asking = layer.input_layernorm(hidden[:, -1:])
                self._asking[index].append(LastToken.of(asking, layer.self_attn, rotary))
            if index == len(self.decoder.layers) - 1:
                hidden, keys, values = last_token(layer, hidden, rotary, valid)
            else:
                hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, **{cache_keyword(layer): cache})
                keys, values = cache.layers[index].keys, cache.layers[index].values
                cache.layers[index].keys = cache.layers[index].values = None
            self._keys[index - self.start].append(keys)
            self._values[index - self.start].append(values)
        self._hidden.append(hidden)

    @property
    def hidden(self) -> Tensor:
        """What leaves the last layer."""
        return joined(self._hidden)

    @property
    def inside(self) -> Tensor:
        """`[R, L, D]`: what the attention of the last layer got."""
        return joined(self._inside)

    def asking(self) -> dict[int, LastToken]:
        """The last token in each layer watched."""
        return {layer: _joined_tokens(parts) for layer, parts in self._asking.items()}

    def caches(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer."""
        return [(joined(k), joined(v)) for k, v in zip(self._keys, self._values, strict=True)]


def _joined_tokens(parts: list[LastToken]) -> LastToken:
    cos, sin = (torch.cat([part.rotary[which] for part in parts]) for which in range(2))
    return LastToken(torch.cat([part.inside for part in parts]), parts[0].attn, (cos, sin))


def joined(parts: list[Tensor]) -> Tensor:
    """The parts as one, in place of the list, so that a part does not outlive it."""
    if len(parts) > 1:
        whole = torch.cat(parts)
        parts[:] = [whole]
    return parts[0]


def last_token(layer: Any, hidden: Tensor, rotary: Rotary, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The last layer of a prefill: keys and values of all tokens, but only the last one goes on, `[R, 1, D]`."""
    attn = layer.self_attn
    inside = layer.input_layernorm(hidden)
    query = split_heads(attn.q_proj(inside[:, -1:]), attn)
    keys, values = split_heads(attn.k_proj(inside), attn), split_heads(attn.v_proj(inside), attn)
    keys, _ = rotate(keys, keys, rotary)
    query, _ = rotate(query, query, (rotary[0][:, -1:], rotary[1][:, -1:]))
    seen = attend(attn, query, keys, values, valid)
    return after_attention(layer, hidden[:, -1:], seen), keys, values


def project(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of single tokens `[R, 1, D]`, not yet rotated: `[R, heads, 1, head_dim]`."""
    attn, inside = layer.self_attn, layer.input_layernorm(hidden)
    return (
        split_heads(attn.q_proj(inside), attn),
        split_heads(attn.k_proj(inside), attn),
        split_heads(attn.v_proj(inside), attn),
    )


def attend(attn: Any, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """The attention of one token per row, before the output projection: `[R, 1, heads * head_dim]`.

    It is the last one, so it sees every token that is `valid` `[R, L]`.
    """
    kind = attn.config._attn_implementation
    mask = None
    if valid is not None:
        mask = valid[:, None, None]
        if kind == "eager":
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(
                ~mask, torch.finfo(query.dtype).min
            )
    run = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
    seen, _ = run(attn, query, keys, values, mask, dropout=0.0, scaling=attn.scaling)
    return seen.flatten(2)


def after_attention(layer: Any, residual: Tensor, seen: Tensor) -> Tensor:
    """The rest of a layer after its attention."""
    hidden = residual + layer.self_attn.o_proj(seen)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Of the last layer's output for one token per row `[R, 1, D]`: the logits `[R, vocabulary]` in float32."""
    norm: nn.Module = model.model.language_model.norm
    logits: Tensor = model.lm_head(norm(hidden))[:, -1]
    return logits.float()


def parts_of(rows: int, length: int, tokens: int) -> Sequence[slice]:
    """Rows of so many tokens each in parts of at most `tokens` together, or of one row."""
    step = max(1, tokens // max(1, length))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
