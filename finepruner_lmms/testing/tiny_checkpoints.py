"""Whole checkpoints of every family: the small random models of `testing.families` and real processors for them.

The processors are of transformers' own classes, with a tokenizer that knows characters; nothing is downloaded.
`python -m finepruner_lmms.testing.tiny_checkpoints FAMILY FOLDER` writes one.
"""

from __future__ import annotations

import argparse
import functools
import string
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
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

from finepruner_lmms.errors import check_choice
from finepruner_lmms.testing.families import END, IMAGE, PAD, START, VIDEO, tiny_model

_SPECIAL = {PAD: "<pad>", IMAGE: "<image>", VIDEO: "<video>", START: "<vision>", END: "</vision>"}
_NAMES = {
    "image_token": "<image>", "video_token": "<video>", "context_image_token": "<image>",
    "start_image_token": "<vision>", "end_image_token": "</vision>",
    "vision_start_token": "<vision>", "vision_end_token": "</vision>",
}  # fmt: skip
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}SHOWN{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character."""
    characters = {character: number for number, character in enumerate(string.printable[:97], 2)}
    made = Tokenizer(models.WordLevel(characters | {word: i for i, word in _SPECIAL.items()} | {"<unk>": 1}, "<unk>"))
    made.add_special_tokens([AddedToken(word, special=True) for word in _SPECIAL.values()])
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", padding_side="left", extra_special_tokens=_NAMES
    )


def write_checkpoint(family: str, folder: str | Path) -> Path:
    """A checkpoint in transformers' layout that `finepruner_lmms.load_model(folder)` opens; less than 2 MB.

    `family` is a name of `testing.families.FAMILIES` other than `llava`: a `model_type`, with a decoder behind a hyphen
    where there are several. Returns the folder. `FieldError` naming a family that there is not.
    """
    processor = tiny_processor(family)
    tiny_model(family).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


@functools.cache
def tiny_processor(which: str) -> Any:
    """For `testing.families.tiny_model(which)`."""
    which = which.partition("-")[0]  # decoders do not matter to it
    check_choice("family", which, list(_MAKERS))
    made = _MAKERS[which]()
    around = ("<vision>", "</vision>") if which.startswith("qwen") else ("", "")
    image = f"{around[0]}<image>{around[1]}"
    video = "<video>" if which == "qwen3_vl" else f"{around[0]}<video>{around[1]}"
    shown = f"{{% if c['type'] == 'video' %}}{video}{{% else %}}{image}{{% endif %}}"
    made.chat_template = _TEMPLATE.replace("SHOWN", shown)
    return made


_TILES = {"image_grid_pinpoints": [[12, 24], [24, 12]]}


def _llava_next() -> Any:
    size = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    pictures = LlavaNextImageProcessor(**size, **_TILES)
    return LlavaNextProcessor(
        pictures,
        tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_onevision() -> Any:
    size = {"height": 12, "width": 12}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, **_TILES),
        tokenizer(),
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
    )


_PATCHES = {"patch_size": 2, "temporal_patch_size": 2, "merge_size": 2}
_PIXELS = {"size": {"shortest_edge": 64, "longest_edge": 256}}


def _qwen2_5() -> Any:
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**_PATCHES, **_PIXELS), tokenizer(), Qwen2VLVideoProcessor(**_PATCHES, **_PIXELS)
    )


def _qwen3() -> Any:
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**_PATCHES, **_PIXELS), tokenizer(), Qwen3VLVideoProcessor(**_PATCHES, **_PIXELS)
    )


def _internvl() -> Any:
    size = {"height": 16, "width": 16}
    return InternVLProcessor(
        GotOcr2ImageProcessor(crop_to_patches=True, max_patches=12, size=size),
        tokenizer(),
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
    )


_MAKERS = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5,
    "qwen3_vl": _qwen3,
    "internvl": _internvl,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a small random checkpoint of a family.")
    parser.add_argument("family", help=", ".join(_MAKERS))
    parser.add_argument("folder")
    given = parser.parse_args()
    write_checkpoint(given.family, given.folder)
