"""Single rows of attention, recomputed in float32 from what a decoder layer got and from its cached keys.

No full attention map is ever built, so SDPA or flash attention stays on in every layer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finepruner_lmms.engine.parts import as_weights, device_of
from finepruner_lmms.engine.prompt_layout import Layout
from finepruner_lmms.engine.prompt_state import PromptState, on_device
from finepruner_lmms.errors import FieldError

TEXT_ROWS = 64
"""So many rows of text are computed at a time: each takes a row of logits over the whole prompt for every head."""


@dataclass(frozen=True)
class Rows:
    """The rows that a method may read before decoder layer `layer`, and what they are computed from.

    `hidden` `[B, L, D]` is what enters the layer; `cached(l)` are keys and values of the earlier layer `l`,
    `[B, KV heads, L, head_dim]` each, the keys rotated; `layout` and `positions`, `[B, L]` or `[3, B, L]`, are the
    layer's own. Everything is given on the device of `hidden`, wherever the layers that it comes from compute.
    """

    decoder: nn.Module
    state: PromptState
    layer: int
    hidden: Tensor
    cached: Callable[[int], tuple[Tensor, Tensor]]
    layout: Layout
    positions: Tensor

    @cached_property
    def _cached_before(self) -> tuple[Tensor, Tensor]:
        return self.cached(self.layer - 1)

    @property
    def keys(self) -> Tensor:
        """`[B, KV heads, L, head_dim]`: of the layer before, rotated."""
        return self._cached_before[0]

    @property
    def values(self) -> Tensor:
        """`[B, KV heads, L, head_dim]`: of the layer before."""
        return self._cached_before[1]

    @property
    def prompt(self) -> Layout:
        """The layout of the prompt as it was read."""
        assert self.state.layout is not None
        return on_device(self.state.layout, self.hidden.device)

    @property
    def embeds(self) -> Tensor:
        """`[B, L, D]`: what enters the first layer."""
        assert self.state.embeds is not None
        return self.state.embeds.to(self.hidden.device)

    def before(self, rows: int, skip: int = 0) -> Tensor:
        """Of the layer before, the last `rows` but `skip`: `[B, H, rows, V]`."""
        entered, attn, rotary = self.state.inputs[self.layer]
        layout = on_device(self.layout, entered.device)
        return visual_rows(entered, attn, rotary, self.keys, layout, rows, skip).to(self.hidden.device)

    def last(self) -> Tensor:
        """Of the layer before, the last token's: `[B, H, V]`."""
        return self.before(1)[:, :, 0]

    def last_in(self, layer: int) -> Tensor:
        """Of an earlier layer that the method asked for, the last token's, of what is still there: `[B, H, V]`."""
        if layer == self.layer - 1:
            return self.last()
        if layer not in self.state.asking:
            raise FieldError(
                "reads_layers",
                f"the attention of layer {layer} was not asked for before the drop at layer {self.layer}",
                value=layer,
                fix="name it in what the method's `reads_layers` returns",
            )
        asking, (keys, _) = self.state.asking[layer], self.cached(layer)
        layout = on_device(self.state.layout_of(layer), keys.device)
        rows = visual_rows(asking.inside, asking.attn, asking.rotary, keys, layout, 1)[:, :, 0].to(self.hidden.device)
        # tokens that were made since follow those of that layer; what was dropped since is not there any more
        made = self.layout.present.shape[1] - rows.shape[2]
        return nn.functional.pad(rows, (0, made)) * self.layout.present[:, None]

    def text(self) -> Iterator[tuple[slice, Tensor]]:
        """Of the layer before, those of the text after the image, `TEXT_ROWS` at a time."""
        tail = self.prompt.tail
        for skip in range(0, tail, TEXT_ROWS):
            rows = min(TEXT_ROWS, tail - skip)
            yield slice(tail - skip - rows, tail - skip), self.before(rows, skip)

    def visual_values(self) -> Tensor:
        """Of the layer before, the values of the visual tokens for each query head: `[B, H, V, head_dim]`."""
        _, attn, _ = self.state.inputs[self.layer]
        columns = on_device(self.layout, self.values.device).columns[:, None, :, None]
        shape = (-1, self.values.shape[1], -1, self.values.shape[3])
        own = self.values.gather(2, columns.expand(*shape)).to(self.hidden.device)
        return own[:, :, None].expand(-1, -1, heads_per_key(attn), -1, -1).flatten(1, 2)

    def rotation(self) -> Tensor:
        """The mean cosine and sine of the angles of the visual tokens' positions, `[B, 2, V]`; the mean of three axes.

        In float64, whatever the model computes in: half precision would make ties.
        """
        columns = self.layout.columns.expand(*self.positions.shape[:-1], -1)
        rotary: Any = self.decoder.rotary_emb
        frequencies = rotary.inv_freq.to(self.hidden.device).double()
        angles = self.positions.gather(-1, columns)[..., None].double() * frequencies
        both = torch.stack([angles.cos().mean(-1), angles.sin().mean(-1)], dim=-2)
        return both.mean(0) if both.ndim == 4 else both

    def text_output(self) -> Tensor:
        """Of the layer before, what its attention makes of the text after the image: `[B, H, max(T, 1), head_dim]`.

        Before the output projection, in float32. Without text it is of the last token.
        """
        entered, attn, rotary = self.state.inputs[self.layer]
        layout, tail = on_device(self.layout, entered.device), max(self.prompt.tail, 1)
        parts = []
        for start in range(0, tail, TEXT_ROWS):
            rows = min(TEXT_ROWS, tail - start)
            weights = attention_rows(entered, attn, rotary, self.keys, layout, rows, tail - start - rows)
            grouped = weights.unflatten(1, (self.values.shape[1], -1)).flatten(2, 3)
            parts.append((grouped @ self.values.float()).unflatten(2, (-1, rows)).flatten(1, 2))
        return torch.cat(parts, dim=2).to(self.hidden.device)

    def last_of_next(self) -> Tensor:
        """Of the layer itself as it would be with nothing dropped, the last token's: `[B, H, V]`."""
        layer: Any = self.decoder.layers[self.layer]  # type: ignore[index]
        device, attn = device_of(layer, self.hidden.device), layer.self_attn
        hidden = self.hidden.to(device)
        cos, sin = self.decoder.rotary_emb(hidden, position_ids=self.positions.to(device))  # type: ignore[operator]
        rotary = cos.to(device), sin.to(device)
        inside = layer.input_layernorm(hidden)
        keys = split_heads(attn.k_proj(as_weights(attn.k_proj, inside)), attn, "k_norm")
        keys, _ = apply_rotary_pos_emb(keys, keys, *rotary)
        rows = visual_rows(inside, attn, rotary, keys, on_device(self.layout, device), 1)
        return rows[:, :, 0].to(self.hidden.device)


def split_heads(projected: Tensor, attn: Any, norm: str = "") -> Tensor:
    """`[B, L, H * head_dim]` → `[B, H, L, head_dim]`, normalised per head by `attn.<norm>` if there is one."""
    heads = projected.unflatten(-1, (-1, attn.head_dim))
    return (getattr(attn, norm)(heads) if hasattr(attn, norm) else heads).transpose(1, 2)


def heads_per_key(attn: Any) -> int:
    """How many query heads share a head of keys and values."""
    return attn.q_proj.out_features // attn.k_proj.out_features


def check_layers(layers: Iterable[Any]) -> None:
    """Raise `FieldError` for decoder layers whose attention could not be computed again from their parts.

    Rows are made of `input_layernorm`, `q_proj`, `k_proj` and norms per head; other decoders fuse their projections,
    normalise elsewhere, or rotate a part of each head, and their rows would be wrong without anybody noticing.
    """
    for layer in layers:
        attn: Any = getattr(layer, "self_attn", None)
        missing = [name for name in ("q_proj", "k_proj", "head_dim", "scaling") if not hasattr(attn, name)]
        missing += [] if hasattr(layer, "input_layernorm") else ["input_layernorm"]
        if missing:
            raise FieldError(
                "model",
                f"its {type(layer).__name__} has no {missing[0]}, so the attention of single tokens cannot be computed "
                "again",
                fix="see docs/add_a_model.md for what a decoder needs",
            )
        if (odd := _unlike_llama(attn)) is not None:
            raise FieldError(
                "model",
                f"its {type(attn).__name__} {odd}, so rows of attention computed as Llama's would be wrong",
                fix="see docs/add_a_model.md for what a decoder needs",
            )
        for name in ("q_norm", "k_norm"):
            weight = getattr(getattr(attn, name, None), "weight", None)
            if isinstance(weight, Tensor) and weight.shape != (attn.head_dim,):
                raise FieldError(
                    "model",
                    f"{name} of its {type(layer).__name__} normalises {list(weight.shape)}, not the {attn.head_dim} of "
                    "one head",
                )


def _unlike_llama(attn: Any) -> str | None:
    """What this attention does to queries, keys or logits that Llama's does not; None where nothing is known."""
    rotate = getattr(sys.modules[type(attn).__module__], "apply_rotary_pos_emb", None)
    if rotate is not None and not _rotates_alike(rotate):
        return "rotates queries and keys in a way of its own"
    if (share := getattr(attn, "rotary_ndims", attn.head_dim)) != attn.head_dim:
        return f"rotates {share} of the {attn.head_dim} values of a head"
    if getattr(attn, "attn_logit_softcapping", None) is not None:
        return "bounds its logits (softcapping)"
    if not getattr(attn, "use_rope", True):
        return "does not rotate in some layers"
    for name in ("q_layernorm", "k_layernorm"):
        if isinstance(getattr(attn, name, None), nn.Module):
            return f"normalises by {name}"
    return None


@functools.cache
def _rotates_alike(rotate: Any) -> bool:
    """Whether a function rotates `[1, 1, 3, 8]` as Llama's does."""
    heads = torch.linspace(-1, 1, 24).view(1, 1, 3, 8)
    angles = torch.linspace(0, 1, 24).view(1, 3, 8).cos(), torch.linspace(0, 1, 24).view(1, 3, 8).sin()
    try:
        found = rotate(heads, heads, *angles)[0]
    except (TypeError, RuntimeError):  # other arguments, or other shapes
        return False
    return found.shape == heads.shape and bool(torch.equal(found, apply_rotary_pos_emb(heads, heads, *angles)[0]))


def visual_rows(
    inside: Tensor, attn: Any, rotary: tuple[Tensor, Tensor], keys: Tensor, layout: Layout, rows: int, skip: int = 0
) -> Tensor:
    """The attention of the last `rows` tokens but `skip` to the visual tokens, `[B, H, rows, V]`, in float32.

    The arguments are those of `attention_rows`.
    """
    weights = attention_rows(inside, attn, rotary, keys, layout, rows, skip)
    columns = layout.columns[:, None, None].expand(-1, weights.shape[1], rows, -1)
    return weights.gather(3, columns) * layout.present[:, None, None]


def attention_rows(
    inside: Tensor, attn: Any, rotary: tuple[Tensor, Tensor], keys: Tensor, layout: Layout, rows: int, skip: int = 0
) -> Tensor:
    """The attention of the last `rows` tokens but `skip` to all tokens, `[B, H, rows, L]`, in float32.

    `inside` `[B, L, D]` is what the attention layer `attn` gets and `rotary` what it turns by, of which the last
    `rows + skip` tokens are enough; `keys` `[B, KV heads, L, head_dim]` are rotated. The softmax runs over all that a
    token sees.
    """
    length = keys.shape[2]

    def last(values: Tensor) -> Tensor:
        return values[:, values.shape[1] - skip - rows : values.shape[1] - skip]

    query = split_heads(attn.q_proj(as_weights(attn.q_proj, last(inside))), attn, "q_norm")
    query, _ = apply_rotary_pos_emb(query, query, last(rotary[0]), last(rotary[1]))
    # query heads of one group share their keys; folding them into the rows avoids repeating the keys
    grouped = query.float().unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    logits = (grouped @ keys.float().transpose(2, 3)).unflatten(2, (-1, rows)).flatten(1, 2) * attn.scaling
    seen = layout.valid[:, None, None]
    if rows > 1 or skip:
        place = torch.arange(length, device=inside.device)
        # a padding row sees itself, so that its softmax is one of numbers
        own = place[length - skip - rows : length - skip, None]
        seen = (place <= own) & (seen | (place == own))
    return logits.masked_fill(~seen, float("-inf")).softmax(-1)
