"""A small random model of every family, of transformers' own classes, and prompts with pictures for it.

Nothing is downloaded, and no processor is needed: a prompt shows pictures `a` and `b`, of different sizes where the
family knows sizes, and films `v` where it knows videos. What the model itself makes of their pixels says how many
placeholders each takes.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

IMAGE, VIDEO, PAD, START, END = 110, 111, 0, 112, 113
WORDS = 100
"""Text is made of the ids from 2 on, below this one."""
LAYERS = 6
_HEADS, _KV_HEADS, _HEAD_DIM = 9, 3, 8
_TEXT: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": _HEADS * _HEAD_DIM,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,
}
_WIDER_HEADS = _TEXT | {"head_dim": 12}  # where a decoder takes heads that are wider together than the model
_GRID_TEXT = _TEXT | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
}
_TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GRID_TOWER: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 2,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": _GRID_TEXT["hidden_size"],
    "initializer_range": 0.2,
}
_GRID_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
Pictures = Callable[[Sequence[str], torch.Generator], dict[str, Any]]


@dataclass(frozen=True)
class TinyFamily:
    """How to make a small model of a family, and the pictures of a call.

    `pictures(names, generator)` are the arguments that show the pictures of one row, as the family's processor would
    give them. `films` is whether `v` is known, `types` whether rows say which of their tokens are which, `wrapped`
    whether tokens stand around each picture, and `by_frame` whether they stand around each frame of a film.
    """

    config: Callable[[], Any]
    pictures: Pictures
    films: bool = False
    types: bool = False
    wrapped: bool = False
    by_frame: bool = False


# -- pictures -------------------------------------------------------------------------------------------------------


def _squares(names: Sequence[str], generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": torch.randn(len(names), 3, 16, 16, generator=generator)}


_SIZES = {"a": (7, 24), "b": (24, 14)}  # height × width; both are padded to two tiles of 12, and unpadded again


def _any_resolution(names: Sequence[str], generator: torch.Generator) -> dict[str, Any]:
    tiles = torch.randn(len(names), 3, 3, 12, 12, generator=generator)  # the whole picture, and two tiles of it
    return {"pixel_values": tiles, "image_sizes": torch.tensor([_SIZES[name] for name in names])}


def _one_vision(names: Sequence[str], generator: torch.Generator) -> dict[str, Any]:
    given: dict[str, Any] = {}
    images = [name for name in names if name != "v"]
    if images:
        given = _any_resolution(images, generator)
        given["batch_num_images"] = torch.tensor([len(images)])
    if films := len(names) - len(images):
        given["pixel_values_videos"] = torch.randn(films, 3, 3, 12, 12, generator=generator)
    return given


_GRIDS = {
    "a": (1, 6, 8),
    "b": (1, 8, 4),
    "v": (2, 4, 6),
}  # frames × rows × columns of patches, four of which are merged


def _grids(names: Sequence[str], generator: torch.Generator) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for pixels, grid, some in (
        ("pixel_values", "image_grid_thw", [name for name in names if name != "v"]),
        ("pixel_values_videos", "video_grid_thw", [name for name in names if name == "v"]),
    ):
        if some:
            given[grid] = torch.tensor([_GRIDS[name] for name in some])
            given[pixels] = torch.randn(int(given[grid].prod(-1).sum()), 3 * 2 * 2 * 2, generator=generator)
    return given


_TILES = {"a": 3, "b": 4, "s": 1}  # `s` is one tile, a square


def _tiles(names: Sequence[str], generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": torch.randn(sum(_TILES[name] for name in names), 3, 16, 16, generator=generator)}


# -- models ---------------------------------------------------------------------------------------------------------


def _llava() -> Any:
    tower = transformers.CLIPVisionConfig(**_TOWER, image_size=16, patch_size=4)
    text = transformers.LlamaConfig(**_TEXT)
    return transformers.LlavaConfig(vision_config=tower, text_config=text, image_token_id=IMAGE, image_seq_length=16)


def _llava_next(text: Any) -> Any:
    tower = transformers.CLIPVisionConfig(**_TOWER, image_size=12, patch_size=4)
    return transformers.LlavaNextConfig(
        vision_config=tower, text_config=text, image_token_index=IMAGE, image_grid_pinpoints=[[12, 24], [24, 12]]
    )


def _vicuna() -> Any:
    return _llava_next(transformers.LlamaConfig(**_TEXT))


def _mistral() -> Any:
    return _llava_next(transformers.MistralConfig(**_WIDER_HEADS, sliding_window=None))


def _onevision() -> Any:
    tower = transformers.SiglipVisionConfig(**_TOWER, image_size=12, patch_size=4, vision_use_head=False)
    return transformers.LlavaOnevisionConfig(
        vision_config=tower,
        text_config=transformers.Qwen2Config(**_TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[12, 24], [24, 12]],
    )


def _qwen2_5() -> Any:
    tower = _GRID_TOWER | {"window_size": 8, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
    return transformers.Qwen2_5_VLConfig(
        vision_config=tower, text_config={k: v for k, v in _GRID_TEXT.items() if k != "head_dim"}, **_GRID_IDS
    )


def _qwen3() -> Any:
    tower = _GRID_TOWER | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    rope = _GRID_TEXT["rope_parameters"] | {"mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        vision_config=tower, text_config=_GRID_TEXT | {"rope_parameters": rope}, **_GRID_IDS
    )


def _internvl(text: Any) -> Any:
    tower = transformers.InternVLVisionConfig(**_TOWER, image_size=16, patch_size=4, initializer_range=0.2)
    return transformers.InternVLConfig(
        vision_config=tower, text_config=text, image_token_id=IMAGE, image_seq_length=4, tie_word_embeddings=False
    )


def _internvl_qwen2() -> Any:
    return _internvl(transformers.Qwen2Config(**_TEXT))


def _internvl_qwen3() -> Any:
    return _internvl(transformers.Qwen3Config(**_WIDER_HEADS))


FAMILIES: dict[str, TinyFamily] = {
    "llava": TinyFamily(_llava, _squares),
    "llava_next": TinyFamily(_vicuna, _any_resolution),
    "llava_next-mistral": TinyFamily(_mistral, _any_resolution),
    "llava_onevision": TinyFamily(_onevision, _one_vision, films=True),
    "qwen2_5_vl": TinyFamily(_qwen2_5, _grids, films=True, types=True, wrapped=True),
    "qwen3_vl": TinyFamily(_qwen3, _grids, films=True, types=True, wrapped=True, by_frame=True),
    "internvl": TinyFamily(_internvl_qwen2, _tiles, wrapped=True),
    "internvl-qwen3": TinyFamily(_internvl_qwen3, _tiles, wrapped=True),
}
"""By `model_type`, with the decoder behind a hyphen where a family has several."""


@functools.cache
def tiny_model(which: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A random model of a family: 6 layers, 9 query heads, 3 KV heads; norms and biases are random, too."""
    torch.manual_seed(0)
    config = FAMILIES[which].config()
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    model = model.to(dtype)
    model.set_attn_implementation(attention)
    return model


# -- prompts --------------------------------------------------------------------------------------------------------

Part = int | str
Row = Sequence[Part]


def family_prompts(which: str, *rows: Row, seed: int = 1) -> dict[str, Any]:
    """A left-padded batch for `tiny_model(which)`, with all that its `generate` takes.

    A row is made of numbers of text tokens and of pictures: `(5, "a", 3, "b", 2)`. Its words and pixels depend on
    `seed` and on the row itself, not on the batch that it is in.
    """
    parts = [_alone(which, tuple(row), seed) for row in rows]
    width = max(part["input_ids"].shape[1] for part in parts)
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            values = [torch.nn.functional.pad(value, (width - value.shape[1], 0), value=PAD) for value in values]
        joined[name] = torch.cat(values)
    return joined


@functools.lru_cache(maxsize=256)
def _alone(which: str, row: tuple[Part, ...], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, row)).encode()))
    family, names = FAMILIES[which], [part for part in row if isinstance(part, str)]
    given = family.pictures(names, generator) if names else {}
    counts = _placeholders(which, names, given)
    ids, types = list[Tensor](), list[Tensor]()

    def add(new: Tensor, kind: int = 0) -> None:
        ids.append(new)
        types.append(torch.full_like(new, kind))

    for part in row:
        if isinstance(part, int):
            add(torch.randint(2, WORDS, (part,), generator=generator))
            continue
        frames = _GRIDS["v"][0] if part == "v" and family.by_frame else 1
        count = next(counts[part == "v"])
        for _ in range(frames):
            if frames > 1:  # the time of each frame
                add(torch.randint(2, WORDS, (2,), generator=generator))
            if family.wrapped:
                add(torch.tensor([START]))
            add(torch.full((count // frames,), VIDEO if part == "v" else IMAGE), 2 if part == "v" else 1)
            if family.wrapped:
                add(torch.tensor([END]))
    together = torch.cat(ids)[None]
    inputs = {"input_ids": together, "attention_mask": torch.ones_like(together)}
    return inputs | ({"mm_token_type_ids": torch.cat(types)[None]} if family.types else {}) | given


@torch.no_grad()
def _placeholders(which: str, names: Sequence[str], given: dict[str, Any]) -> dict[bool, Iterator[int]]:
    """How many placeholders each picture (False) and each film (True) takes: as many as the model has tokens for it."""
    model, counts = tiny_model(which).model, {False: list[int](), True: list[int]()}
    if "pixel_values" in given:
        found = model.get_image_features(**{k: v for k, v in given.items() if "video" not in k}).pooler_output
        counts[False] = [len(tokens) for tokens in found]
        if which.startswith("internvl"):  # what it returns is one entry per tile
            tiles = iter(counts[False])
            counts[False] = [sum(next(tiles) for _ in range(_TILES[name])) for name in names]
    if "pixel_values_videos" in given:
        found = model.get_video_features(**{k: v for k, v in given.items() if "video" in k}).pooler_output
        counts[True] = [len(tokens) for tokens in found]
    return {film: iter(found) for film, found in counts.items()}
