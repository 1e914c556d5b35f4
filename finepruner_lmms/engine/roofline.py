"""How long a batch takes on a GPU, from the model's sizes and a few measured figures. No tensor is touched.

A decoder layer takes as long as its operations or as reading its weights, whichever is more, and a fixed time for
launching its kernels; the host, where it issues them one by one, may take longer than both. `docs/performance.md` says
how well this does against what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.engine.cost import DecoderSizes, cache_bytes, prefill_flops
from finepruner_lmms.engine.geometry import Geometry


@dataclass(frozen=True)
class Figure:
    """A number that an estimate rests on: its unit, what it is, and where it comes from."""

    value: float
    unit: str
    means: str
    source: str


@dataclass(frozen=True)
class Machine:
    """A GPU's limits, and the share of them that a transformer's products reach."""

    name: str
    flops: Figure
    bandwidth: Figure
    compute_share: Figure
    bandwidth_share: Figure

    @property
    def flops_per_second(self) -> float:
        """What matrix products of a decoder get."""
        return self.flops.value * self.compute_share.value

    @property
    def bytes_per_second(self) -> float:
        """What reading weights and caches gets."""
        return self.bandwidth.value * self.bandwidth_share.value


@dataclass(frozen=True)
class Execution:
    """What running the model adds to arithmetic, in seconds.

    `layer` is a decoder layer's fixed time on the device; the `host_…` are what the host needs to issue a layer of the
    decoder and of the tower, which takes no longer than the device where that is busy (decoder) or adds to it (tower).
    """

    name: str
    layer: Figure
    host_layer: Figure
    host_tower_layer: Figure
    images_at_once: Figure
    host_question: Figure
    overlapped: bool
    """Whether images are read and prompts made while the model runs."""


@dataclass(frozen=True)
class Sizes:
    """What of a model's configuration its time depends on; weights at `element_bytes` per value."""

    decoder: DecoderSizes
    layers: int
    vocabulary: int
    visual: int
    tower_layers: int
    tower_hidden: int
    tower_feed_forward: int
    element_bytes: int = 2
    merged: int = 1
    """Patches that become one visual token."""
    tile: int | None = None
    """Patches that attend to each other in the tower; None where those of a whole image do."""

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """Read from a configuration of transformers, or from what holds its sizes by the same names.

        `visual` is the most of an image, as `Geometry` has it: where images differ, most take less time.
        """
        vision, text = config.vision_config, config.text_config
        depth = vision.num_hidden_layers if hasattr(vision, "num_hidden_layers") else vision.depth
        visual, merged = Geometry.of(config).num_visual_tokens, 1
        if hasattr(vision, "spatial_merge_size"):
            merged = vision.spatial_merge_size**2
        elif hasattr(config, "downsample_ratio"):
            merged = round(config.downsample_ratio**-2)
        return cls(
            DecoderSizes.of(text),
            text.num_hidden_layers,
            text.vocab_size,
            visual,
            depth,
            vision.hidden_size,
            vision.intermediate_size,
            merged=merged,
            tile=_tile(vision),
        )

    @property
    def layer_bytes(self) -> int:
        """The weights of a decoder layer."""
        return self.element_bytes * self._layer_weights

    @property
    def decoder_bytes(self) -> int:
        """What a decode step reads of weights: all layers and the head."""
        return self.layers * self.layer_bytes + self.element_bytes * self.vocabulary * self.decoder.hidden

    @property
    def _layer_weights(self) -> int:
        d, m, q, kv = (self.decoder.hidden, self.decoder.feed_forward, self.decoder.query_width,
                       self.decoder.key_value_width)  # fmt: skip
        return 2 * d * q + 2 * d * kv + 3 * d * m

    @property
    def image_flops(self) -> int:
        """Operations (2 per multiply-accumulate) of the tower and the projector for one image."""
        n, d, m = self.visual * self.merged + 1, self.tower_hidden, self.tower_feed_forward
        together = n if self.tile is None else min(n, self.tile + 1)
        tower = self.tower_layers * n * (4 * d * d + 2 * d * m + 2 * together * d)
        projector = self.visual * (d * self.decoder.hidden + self.decoder.hidden**2)
        return 2 * (tower + projector)

    def prefill_flops(self, lengths: Sequence[int], scored: Sequence[int] = ()) -> int:
        """Of one prompt with so many tokens entering each layer."""
        return prefill_flops(self.decoder, lengths, scored)

    def step_flops(self, cached: float) -> float:
        """Of one more token after `cached` ones, on average over the layers."""
        d, q = self.decoder.hidden, self.decoder.query_width
        return 2 * (self.layers * (self._layer_weights + 2 * cached * q) + d * self.vocabulary)


def _tile(vision: Any) -> int | None:
    """The patches of the square that a tower takes; None for a tower that takes pictures of any size."""
    size, patch = getattr(vision, "image_size", None), vision.patch_size
    if size is None:
        return None
    size, patch = (value[0] if isinstance(value, list | tuple) else value for value in (size, patch))
    return int(size // patch) ** 2


def image_seconds(sizes: Sizes, machine: Machine, execution: Execution, images: int) -> float:
    """To encode so many images together."""
    issued = sizes.tower_layers * execution.host_tower_layer.value
    return issued + images * sizes.image_flops / machine.flops_per_second


def prefill_seconds(
    sizes: Sizes, machine: Machine, execution: Execution, lengths: Sequence[int], batch: int, scored: Sequence[int] = ()
) -> float:
    """The decoder's prefill of a batch of equal prompts, with so many tokens entering each layer."""
    device = 0.0
    for layer, length in enumerate(lengths):
        one = prefill_flops(sizes.decoder, [length], [0] if layer in scored else [])
        arithmetic = batch * one / machine.flops_per_second
        device += max(arithmetic, sizes.layer_bytes / machine.bytes_per_second) + execution.layer.value
    return max(device, sizes.layers * execution.host_layer.value)


def step_seconds(sizes: Sizes, machine: Machine, execution: Execution, lengths: Sequence[int], batch: int) -> float:
    """One decode step of a batch whose caches hold so many tokens in each layer."""
    read = sizes.decoder_bytes + batch * cache_bytes(sizes.decoder, lengths, sizes.element_bytes)
    arithmetic = batch * sizes.step_flops(sum(lengths) / len(lengths)) / machine.flops_per_second
    device = max(arithmetic, read / machine.bytes_per_second) + sizes.layers * execution.layer.value
    return max(device, sizes.layers * execution.host_layer.value)


_MEASURED = "measured on one H100 80 GB"
_FITTED = "fitted to the prefill and decode times measured on one H100"

H100 = Machine(
    "NVIDIA H100",
    Figure(765e12, "FLOP/s", "products of large bfloat16 matrices", _MEASURED),
    Figure(2.9e12, "bytes/s", "copying memory", _MEASURED),
    Figure(0.58, "", "share of the first that a decoder layer reaches",
           "vanilla, batch 32: 270 TFLOP in 609 ms, measured on one H100"),
    Figure(0.65, "", "share of the second that reading a layer's weights reaches",
           "plain decoder as one graph, 95 tokens: 9.5 ms; limit by weight bytes: 4.5 ms; " + _FITTED),
)  # fmt: skip

CPU = Machine(
    "a CPU",
    Figure(1e11, "FLOP/s", "products of matrices on some cores", "assumption, corrected by finished cells"),
    Figure(1e11, "bytes/s", "copying memory", "assumption, corrected by finished cells"),
    Figure(1.0, "", "share of the first", "in the first"),
    Figure(1.0, "", "share of the second", "in the second"),
)  # fmt: skip

EAGER = Execution(
    "eager",
    Figure(60e-6, "s", "a decoder layer's kernels, besides arithmetic", _FITTED),
    Figure(27.5e-3 / 32, "s", "the host issuing a decoder layer", "decode: 27 to 28 ms a step of 32 layers, measured"),
    Figure(11e-3 / 24, "s", "the host issuing a tower layer", "one image alone: 11 ms, of 24 layers, measured"),
    Figure(1, "images", "encoded together", "as the package did before chunks"),
    Figure(8e-3, "s", "reading an image and making its prompt, per question",
           "what 25.3 questions/s at batch 16 leave beside prefill and decode, measured"),
    overlapped=False,
)  # fmt: skip

GRAPHS = Execution(
    "graphs",
    EAGER.layer,
    Figure(0.0, "s", "the host issuing a decoder layer", "captured: one launch for all layers"),
    Figure(60e-6, "s", "a tower layer's kernels, besides arithmetic", "as a decoder layer's; assumption"),
    Figure(8, "images", "encoded together", "the package's chunks"),
    Figure(8e-3 / 4, "s", "reading an image and making its prompt, per question",
           "as eager, by four workers beside the model; assumption"),
    overlapped=True,
)  # fmt: skip
