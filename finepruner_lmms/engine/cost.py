"""What a prefill costs, from the lengths of its layers: exact operation counts and cache bytes, nothing measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderSizes:
    """The widths of a Llama decoder that its operation counts depend on."""

    hidden: int
    feed_forward: int
    query_width: int
    key_value_width: int

    @classmethod
    def of(cls, text_config: Any) -> DecoderSizes:
        """Read from a `LlamaConfig`."""
        head = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
        return cls(
            text_config.hidden_size,
            text_config.intermediate_size,
            text_config.num_attention_heads * head,
            text_config.num_key_value_heads * head,
        )


def prefill_flops(sizes: DecoderSizes, lengths: Sequence[int], scored_layers: Sequence[int] = ()) -> int:
    """Floating-point operations (2 per multiply-accumulate) of the decoder layers for one prompt.

    `lengths` are all tokens entering each layer, text included. Counted are the matrix products; attention as if
    every pair of positions were computed, as dense kernels do. Each of `scored_layers` adds what an attention-guided
    method computes on top: one query row, projected again, against all keys of the layer.
    """
    d, m, q, kv = sizes.hidden, sizes.feed_forward, sizes.query_width, sizes.key_value_width
    layers = sum(n * (2 * d * q + 2 * d * kv + 3 * d * m) + 2 * n * n * q for n in lengths)
    scores = sum(d * q + lengths[layer] * q for layer in scored_layers)
    return 2 * (layers + scores)


@dataclass(frozen=True)
class PrefillCost:
    """What the prefills of an evaluation took, the mean over its questions with an image.

    `visual_tokens` is the average over the decoder layers, `final_visual_tokens` what the last one saw; `macs_2` and
    `macs_3` the two published conventions (`published_macs`); `kv_bytes` the cache after prefill.
    """

    questions: int
    text_tokens: float
    visual_tokens: float
    final_visual_tokens: float
    macs_2: float
    macs_3: float
    kv_bytes: float

    @classmethod
    def of(cls, sizes: DecoderSizes, lengths: Mapping[tuple[int, tuple[int, ...]], int]) -> PrefillCost | None:
        """From how often a prompt had so many text tokens and these visual tokens entering its layers."""
        seen = {key: times for key, times in lengths.items() if key[1][0]}
        if not (questions := sum(seen.values())):
            return None

        def mean(value: Callable[[int, tuple[int, ...]], float]) -> float:
            return sum(times * value(*key) for key, times in seen.items()) / questions

        def macs(matrices: int) -> Callable[[int, tuple[int, ...]], float]:
            return lambda text, visual: published_macs(sizes, [text + tokens for tokens in visual], matrices)

        return cls(
            questions,
            mean(lambda text, _: text),
            mean(lambda _, visual: sum(visual) / len(visual)),
            mean(lambda _, visual: visual[-1]),
            mean(macs(2)),
            mean(macs(3)),
            mean(lambda text, visual: cache_bytes(sizes, [text + tokens for tokens in visual])),
        )


def published_macs(sizes: DecoderSizes, lengths: Sequence[int], matrices: int = 3) -> int:
    """The figure that papers print as FLOPs (multiply-accumulates): `4nd² + 2n²d + 2ndm` per layer, or `3ndm`.

    `matrices=2` is the convention of FastV (its section 4.2) and DivPrune, `matrices=3` that of SparseVLM, which
    counts all three matrices of a gated feed-forward.
    """
    d, m = sizes.hidden, sizes.feed_forward
    return sum(4 * n * d * d + 2 * n * n * d + matrices * n * d * m for n in lengths)


def cache_bytes(sizes: DecoderSizes, lengths: Sequence[int], element_bytes: int = 2) -> int:
    """Bytes of keys and values after the prefill of one prompt."""
    return sum(2 * n * sizes.key_value_width * element_bytes for n in lengths)
