"""The small random model that the checks run on, prompts for it, and random outputs of towers and layers."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import finepruner_lmms as fp
from finepruner_lmms.pruners import DecoderContext

IMAGE, PAD, VISUAL = 99, 0, 16
ON_SMALL_MODELS: dict[str, dict[str, Any]] = {
    "cdpruner": {"relevance": "embedding"},
    "eadp": {"relevance": "embedding"},
    "mmtok": {"words": "all"},
}
"""Parameters that methods need on random models, which have no text tower and no tokenizer."""
SOURCES = (
    "next_attention",
    "text_attention",
    "text_present",
    "prefix_lengths",
    "hidden",
    "values",
    "text_output",
    "rotation",
    "visual_embeds",
)


def rounding(layers: int = 6, dtype: torch.dtype = torch.float32, size: float = 1.0) -> dict[str, Any]:
    """How far apart two outputs of `tiny_llava` may lie that differ in nothing but the order of their sums.

    Processors differ in the order of a sum (vector width, fused multiply-add, the kernel chosen for a mask), and its n
    roundings behave like a random walk: the sum is off by some sqrt(n) eps (Higham and Mary, "A New Approach to
    Probabilistic Rounding Error Analysis", 2019), of which six times is allowed. n is counted along the longest way
    through `layers` decoder layers and the language head; `size` is how large the values are that are added. At six
    layers this is 4e-5, below the 1e-4 that is promised. For `torch.testing.assert_close(a, b, **rounding())`.
    """
    norm, projection, attention, mlp = 64, 64, 8 + 2 * 48, 64 + 96  # products in the sums of a layer; up to 48 tokens
    terms = layers * (2 * norm + 2 * projection + attention + mlp) + 64
    bound = 6 * math.sqrt(terms) * torch.finfo(dtype).eps
    return {"rtol": bound, "atol": bound * size}


@functools.cache
def tiny_llava(attention: str = "sdpa", layers: int = 6, dtype: torch.dtype = torch.float32) -> Any:
    """A random LLaVA with 16 visual tokens and grouped-query attention (8 query heads, 4 KV heads)."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.2,
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, image_seq_length=VISUAL)
    model = LlavaForConditionalGeneration(config).eval().to(dtype)
    model.set_attn_implementation(attention)
    return model


def prompts(*rows: tuple[int, int] | int, seed: int = 1) -> dict[str, Tensor]:
    """A left-padded batch. `(a, b)`: a text tokens, an image, b text tokens; a number: that many text tokens."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> Tensor:
        return torch.randint(2, 98, (count,), generator=generator)

    ids = []
    for row in rows:
        if isinstance(row, int):
            ids.append(words(row))
        else:
            ids.append(torch.cat([words(row[0]), torch.full((VISUAL,), IMAGE), words(row[1])]))
    width = max(map(len, ids))
    batch = torch.stack([torch.cat([torch.full((width - len(row),), PAD), row]) for row in ids])
    images = sum(not isinstance(row, int) for row in rows)
    pixels = torch.randn(images, 3, 16, 16, generator=generator) if images else None
    inputs = {"input_ids": batch, "attention_mask": (batch != PAD).long()}
    return inputs if pixels is None else inputs | {"pixel_values": pixels}


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    single = {"input_ids": inputs["input_ids"][row, real][None], "attention_mask": real[real].long()[None]}
    shown = (inputs["input_ids"] == IMAGE).any(1)
    if shown[row]:
        image = int(shown[:row].sum())
        single["pixel_values"] = inputs["pixel_values"][image : image + 1]
    return single


class RandomFirstLayer(NamedTuple):
    """A `FirstLayer` of two matrices `[D, H * head_dim]`."""

    asks: Tensor
    answers: Tensor
    heads: int = 8

    @classmethod
    def draw(cls, width: int, generator: torch.Generator, heads: int = 8, head_dim: int = 6) -> RandomFirstLayer:
        """For tokens of `width` numbers, on the generator's device."""
        shape, device = (2, width, heads * head_dim), generator.device
        asks, answers = torch.randn(shape, generator=generator, device=device).div(width**0.5)
        return cls(asks, answers, heads)

    def queries(self, tokens: Tensor) -> Tensor:
        """`[..., D]` → `[..., H, head_dim]`."""
        return (tokens.float() @ self.asks).unflatten(-1, (self.heads, -1))

    def keys(self, tokens: Tensor) -> Tensor:
        """`[..., D]` → `[..., H, head_dim]`."""
        return (tokens.float() @ self.answers).unflatten(-1, (self.heads, -1))

    def asked(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """`[B, H, head_dim]` and `[B, N, D]` → `[B, H, N]`."""
        answers = self.answers.unflatten(-1, (self.heads, -1))
        return torch.einsum("bhd,whd->bhw", queries, answers) @ tokens.float().mT


class Sizes(NamedTuple):
    """How wide random outputs are: of the vision tower, of CLIP's joint space and of the language model."""

    tower: int = 80
    tower_heads: int = 4
    keys: int = 8
    joint: int = 20
    projected: int = 96
    heads: int = 8
    head_dim: int = 6


SMALL = Sizes()
SMALL_STATE = Sizes(projected=12)


def vision_outputs(
    batch: int = 3,
    visual: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    sizes: Sizes = SMALL,
    question: int | None = None,
) -> Any:
    """Random encoded images of `visual` tokens, with everything that a vision-side method may read.

    The question is vectors of `question` numbers; None: those of the language model's embedding.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def attention() -> Tensor:
        return draw(batch, sizes.tower_heads, visual).float().softmax(-1)

    features, projector = draw(batch, visual, sizes.tower), draw(sizes.tower, sizes.projected)
    return fp.VisionOutputs(
        features=features,
        projected=features @ projector,
        cls_attention=attention(),
        image_embeds=draw(batch, visual, sizes.joint),
        text_embeds=[draw(1 + row, question or sizes.projected) for row in range(batch)],
        keys=draw(batch, visual, sizes.keys),
        cls_projected=draw(batch, 1, sizes.projected),
        projector=lambda tokens: tokens @ projector,
        received_attention=attention(),
        early_received=attention(),
        early_cls_attention=attention(),
        first_layer=RandomFirstLayer.draw(sizes.projected, generator, sizes.heads, sizes.head_dim),
    )


def one_image(vision: Any, row: int) -> Any:
    """One image of a batch."""
    parts = {name: value[row : row + 1] for name, value in vision.tensors().items() if name != "text_embeds"}
    return vision.replace(**parts, text_embeds=vision.text_embeds[row : row + 1])


def decoder_context(
    batch: int = 3,
    visual: int = 24,
    seed: int = 0,
    layer: int = 2,
    *,
    sizes: Sizes = SMALL_STATE,
    words: int = 5,
) -> DecoderContext:
    """A random state before a drop, with text of `words` - 2 to `words` words after the image."""
    generator = torch.Generator().manual_seed(seed)
    heads, width = sizes.heads, sizes.projected

    def attention(*shape: int) -> Tensor:
        return torch.randn(*shape, visual + 4, generator=generator).mul(2).softmax(-1)[..., :visual]

    present = torch.ones(batch, visual, dtype=torch.bool)
    shorter = torch.arange(words) >= torch.tensor([row % 3 for row in range(batch)])[:, None]

    def attention_in(earlier: int) -> Tensor:
        own = torch.Generator().manual_seed(1000 * seed + earlier)
        return torch.randn(batch, heads, visual + 4, generator=own).mul(2).softmax(-1)[..., :visual]

    return DecoderContext(
        layer,
        attention(batch, heads),
        present,
        attention_in=attention_in,
        next_attention=attention(batch, heads),
        text_attention=attention(batch, heads, words),
        text_present=shorter,
        prefix_lengths=torch.full((batch,), 4),
        hidden=torch.randn(batch, visual, width, generator=generator),
        visual_embeds=torch.randn(batch, visual, width, generator=generator),
        text_embeds=torch.randn(batch, words, width, generator=generator),
        values=torch.randn(batch, heads, visual, sizes.head_dim, generator=generator),
        text_output=torch.randn(batch, heads, words, sizes.head_dim, generator=generator),
        rotation=torch.randn(batch, 2, visual, generator=generator),
    )


def one_row(context: DecoderContext, row: int) -> DecoderContext:
    """One row of a context."""
    sources = {name: getattr(context, name)[row : row + 1] for name in (*SOURCES, "text_embeds")}
    attention, present = context.attention[row : row + 1], context.present[row : row + 1]

    def attention_in(earlier: int) -> Tensor:
        return context.attention_in(earlier)[row : row + 1]

    return DecoderContext(context.layer, attention, present, context.count, attention_in=attention_in, **sources)
