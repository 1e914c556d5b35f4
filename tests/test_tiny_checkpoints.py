"""The small checkpoints that a script writes: their processors make what their models take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import finepruner_lmms as fp
from finepruner_lmms.errors import FieldError
from finepruner_lmms.testing.tiny_checkpoints import write_checkpoint

FAMILIES = [
    "llava_next", "llava_next-mistral", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl", "internvl-qwen3",
]  # fmt: skip
FILMS = ["llava_onevision", "qwen2_5_vl", "qwen3_vl"]


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(processor, *shown: str, **pictures):
    content = [*({"type": one} for one in shown), {"type": "text", "text": "What is this?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=[text], return_tensors="pt", **pictures))


@torch.no_grad()
def made(model, inputs, what: str) -> int:
    """How many tokens the model makes of the pixels."""
    film = "video" in what
    given = {n: v for n, v in inputs.items() if n not in _TEXT and ("video" in n) == film}
    found = getattr(model.model, what)(**given).pooler_output
    return sum(one.shape[:-1].numel() for one in found)


_TEXT = {"input_ids", "attention_mask", "mm_token_type_ids"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_checkpoint_answers_about_pictures_of_any_size(family, tmp_path):
    folder = write_checkpoint(family, tmp_path / "checkpoint")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    model, processor = fp.load_model(str(folder))
    pruner = fp.build_pruner("fastv", budget="50%")
    for sizes in ([(31, 12)], [(12, 31)], [(20, 20), (40, 9)]):
        inputs = asked(processor, *["image"] * len(sizes), images=[picture(*size) for size in sizes])
        placeholders = int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert placeholders == made(model, inputs, "get_image_features") > 0
        answer = fp.generate(model, pruner, inputs, max_new_tokens=2)
        assert answer.trace.tokens_entering[0][0] > answer.trace.tokens_entering[0][-1] > 0
        assert isinstance(processor.tokenizer.decode(answer.sequences[0]), str)


@pytest.mark.parametrize("family", FILMS)
def test_a_written_checkpoint_answers_about_a_film(family, tmp_path):
    model, processor = fp.load_model(str(write_checkpoint(family, tmp_path)))
    frames = np.stack([np.asarray(picture(16, 12))] * 4)
    inputs = asked(processor, "video", videos=[frames], do_sample_frames=False)
    placeholders = int((inputs["input_ids"] == model.config.video_token_id).sum())
    assert placeholders == made(model, inputs, "get_video_features") > 0
    inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    answer = fp.generate(model, fp.build_pruner("fastv", budget="50%"), inputs, max_new_tokens=2)
    assert answer.trace.tokens_entering[0][0] > answer.trace.tokens_entering[0][-1] > 0


def test_a_family_without_a_written_checkpoint_is_refused(tmp_path):
    with pytest.raises(FieldError, match=r"family: got 'llava_nxt'.*llava_next"):
        write_checkpoint("llava_nxt", tmp_path)
