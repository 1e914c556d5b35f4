"""Where the visual tokens of a prompt stand, against what each family's own processor makes of odd pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    InternVLProcessor,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl import InternVLVideoProcessor
from transformers.models.llava_next import LlavaNextImageProcessor
from transformers.models.llava_onevision import LlavaOnevisionImageProcessor, LlavaOnevisionVideoProcessor
from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers.models.qwen3_vl import Qwen3VLVideoProcessor

from finepruner_lmms.engine.families.family import ImageSpan, Run
from finepruner_lmms.engine.families.registry import find_family
from finepruner_lmms.errors import FieldError

ODD = [
    *[(1, 1), (7, 300), (300, 7), (333, 517), (336, 336), (640, 480), (481, 1279)],
    *[(1009, 337), (1023, 769), (900, 61), (385, 1153), (671, 673)],
]
"""Width × height, most of them no multiple of anything."""

SPECIAL = {
    "image_token": "<image>",
    "video_token": "<video>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["<unk>", "<pad>", "a", "b", *dict.fromkeys(SPECIAL.values())])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", padding_side="left", extra_special_tokens=SPECIAL
    )


def llava_next() -> tuple[Any, Any]:
    config = AutoConfig.for_model("llava_next", image_token_index=tokenizer().image_token_id)
    made = LlavaNextProcessor(
        LlavaNextImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return made, config


def llava_onevision() -> tuple[Any, Any]:
    ids = {"image_token_index": tokenizer().image_token_id, "video_token_index": tokenizer().video_token_id}
    config = AutoConfig.for_model("llava_onevision", **ids)
    config.vision_config.image_size, config.vision_config.patch_size = 384, 14
    pictures = LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints)
    made = LlavaOnevisionProcessor(
        pictures,
        tokenizer(),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    )
    return made, config


def qwen2_5_vl() -> tuple[Any, Any]:
    ids = {"image_token_id": tokenizer().image_token_id, "video_token_id": tokenizer().video_token_id}
    made = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer(), Qwen2VLVideoProcessor())
    return made, AutoConfig.for_model("qwen2_5_vl", **ids)


def qwen3_vl() -> tuple[Any, Any]:
    ids = {"image_token_id": tokenizer().image_token_id, "video_token_id": tokenizer().video_token_id}
    made = Qwen3VLProcessor(Qwen2VLImageProcessor(patch_size=16), tokenizer(), Qwen3VLVideoProcessor())
    return made, AutoConfig.for_model("qwen3_vl", **ids)


def internvl() -> tuple[Any, Any]:
    config = AutoConfig.for_model("internvl", image_token_id=tokenizer().context_image_token_id)
    pictures = GotOcr2ImageProcessor(crop_to_patches=True, max_patches=12, size={"height": 448, "width": 448})
    return InternVLProcessor(pictures, tokenizer(), InternVLVideoProcessor(), image_seq_length=256), config


FAMILIES = {made.__name__: made for made in (llava_next, llava_onevision, qwen2_5_vl, qwen3_vl, internvl)}


def picture(size: tuple[int, int]) -> Image.Image:
    """A grey picture. The Qwen processors refuse pictures more than 200 times as long as wide; none here is."""
    return Image.new("RGB", size, (90, 90, 90))


def runs_of(ids: torch.Tensor, token: int) -> list[int]:
    """Lengths of the runs of a token in `[L]`."""
    found, length = [], 0
    for one in [*ids.tolist(), None]:
        if one == token:
            length += 1
        elif length:
            found.append(length)
            length = 0
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_are_as_long_as_the_processor_makes_placeholders(name: str) -> None:
    processor, config = FAMILIES[name]()
    family = find_family(name)
    for size in ODD:
        inputs = processor(images=[picture(size)], text=["<image> a b"], return_tensors="pt")
        lengths = runs_of(inputs["input_ids"][0], config.image_token_id)
        arguments = {key: inputs[key] for key in family.media if key in inputs}
        spans = family.spans(config, [Run(length) for length in lengths], arguments)
        assert len(spans) == len(lengths) == 1, size
        assert sum(span.length for span in spans[0]) == lengths[0], size
        for span in spans[0]:
            assert span.num_visual_tokens <= family.most_visual_tokens(config)
            if span.grid is not None:
                assert np.prod(span.grid) == span.num_visual_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_several_images_and_of_none(name: str) -> None:
    processor, config = FAMILIES[name]()
    family = find_family(name)
    sizes = [(64, 40), (333, 517), (200, 90)]
    nested = [[picture(sizes[0]), picture(sizes[1])], [], [picture(sizes[2])]]
    texts = ["<image> a <image> b", "a", "<image> b"]
    inputs = processor(images=nested, text=texts, return_tensors="pt", padding=True)
    lengths = [runs_of(row, config.image_token_id) for row in inputs["input_ids"]]
    assert [len(row) for row in lengths] == [2, 0, 1]
    arguments = {key: inputs[key] for key in family.media if key in inputs}
    spans = family.spans(config, [Run(length) for row in lengths for length in row], arguments)
    assert [sum(span.length for span in run) for run in spans] == [length for row in lengths for length in row]


def test_newlines_of_llava_next_end_each_row_after_the_overview() -> None:
    _, config = llava_next()
    (span,) = find_family("llava_next").described(config, {"image_sizes": [[672, 672]]})
    assert span.num_visual_tokens == 2880
    assert len(span.separators) == 48
    assert span.separators[0] == 576 + 48
    assert set(np.diff(span.separators)) == {49}
    assert find_family("llava_next").most_visual_tokens(config) == 2880


def test_onevision_shows_several_images_of_a_sample_without_tiles() -> None:
    _, config = llava_onevision()
    family = find_family("llava_onevision")
    sizes = [[500, 700]] * 3
    spans = family.described(config, {"image_sizes": sizes, "batch_num_images": torch.tensor([2, 1])})
    assert [span.length for span in spans[:2]] == [730, 730]
    assert spans[0] == ImageSpan(730, (729,), (1, 27, 27))
    assert spans[2].length > 730
    with pytest.raises(FieldError, match="batch_num_images"):
        family.described(config, {"image_sizes": sizes, "batch_num_images": [1]})


def test_the_largest_image_of_onevision_has_the_most_tokens() -> None:
    _, config = llava_onevision()
    family = find_family("llava_onevision")
    sizes = [list(size) for size in config.image_grid_pinpoints]
    found = [span.num_visual_tokens for span in family.described(config, {"image_sizes": sizes})]
    assert max(found) == family.most_visual_tokens(config)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_videos_are_described_as_the_processor_places_them(name: str) -> None:
    processor, config = FAMILIES[name]()
    family = find_family(name)
    frames = [np.full((60, 100, 3), 90, dtype=np.uint8)] * 4
    extra = {"do_sample_frames": False}
    inputs = processor(videos=[frames], text=["<video> a"], return_tensors="pt", **extra)
    ids = family.placeholders(config)
    token = ids.get("video", ids["image"])
    lengths = runs_of(inputs["input_ids"][0], token)
    arguments = {key: inputs[key] for key in family.media if key in inputs}
    spans = family.spans(config, [Run(length, "video" in ids) for length in lengths], arguments)
    assert [[span.length for span in run] for run in spans] == [[length] for length in lengths]
    assert len(lengths) == {"qwen3_vl": 2, "internvl": 4}.get(name, 1)
    assert all(span.video == ("video" in ids) and span.grid is not None for run in spans for span in run)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_that_do_not_fit_their_images_are_refused(name: str) -> None:
    processor, config = FAMILIES[name]()
    family = find_family(name)
    inputs = processor(images=[picture((100, 60))], text=["<image> a"], return_tensors="pt")
    arguments = {key: inputs[key] for key in family.media if key in inputs}
    (length,) = runs_of(inputs["input_ids"][0], config.image_token_id)
    with pytest.raises(FieldError, match="placeholders"):
        family.spans(config, [Run(length - 1)], arguments)
    with pytest.raises(FieldError, match="input_ids"):
        family.spans(config, [], arguments)
    if len(family.media) > 1:
        with pytest.raises(FieldError, match="missing"):
            family.described(config, {"pixel_values": inputs["pixel_values"]})


def test_a_decoder_or_tower_that_is_not_known_is_refused_by_name() -> None:
    for name, made in FAMILIES.items():
        _, config = made()
        family = find_family(name)
        family.check(config)
        text = SimpleNamespace(**config.text_config.to_dict() | {"model_type": "phi3"})
        other = SimpleNamespace(**vars(config) | {"text_config": text, "vision_config": config.vision_config})
        with pytest.raises(FieldError, match="phi3"):
            family.check(other)
