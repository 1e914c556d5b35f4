"""What goes into the model equals what LLaVA-1.5's own code feeds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

from finepruner_lmms.images import pad_to_square, preprocess
from finepruner_lmms.load import load_model
from finepruner_lmms.prompts import prompt, vicuna_v1

GOLDEN = Path(__file__).parent / "golden"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip() -> CLIPImageProcessorPil:
    """The image processor of CLIP ViT-L/14-336."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_mean=MEAN, image_std=DEVIATION
    )


@pytest.mark.parametrize("name", ["image0", "image1"])
def test_pixels_equal_llavas(name):
    expected = load_file(GOLDEN / "pixel_values_every_6th.safetensors")[name].float()
    pixels = preprocess(clip(), Image.open(GOLDEN / f"{name}.png"))
    assert pixels.shape == (3, 336, 336) and pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[:, ::6, ::6], expected, atol=2e-3, rtol=0)  # the reference is in float16
    cut = preprocess(clip(), Image.open(GOLDEN / f"{name}.png"), "crop")
    assert (cut[:, ::6, ::6] - expected).abs().mean() > 0.1  # cropping shows something else


def test_pictures_of_any_mode_are_read():
    square = Image.new("L", (40, 20), 200)
    assert preprocess(clip(), square).shape == (3, 336, 336)
    assert preprocess(clip(), Image.new("RGBA", (20, 40), (255, 0, 0, 0))).shape == (3, 336, 336)
    padded = pad_to_square(Image.new("RGB", (30, 10), (255, 255, 255)), (1, 2, 3))
    assert padded.size == (30, 30) and padded.getpixel((0, 0)) == (1, 2, 3) and padded.getpixel((0, 15)) == (255,) * 3


def test_a_rotated_photograph_is_turned_as_its_camera_says():
    picture = Image.open(GOLDEN / "image1.png").convert("RGB")
    turned, exif = picture.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise to be seen as it was
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[0x0112] = 6
    torch.testing.assert_close(preprocess(clip(), turned), preprocess(clip(), picture))


def test_prompts_equal_llavas():
    expected = json.loads((GOLDEN / "prompts_vicuna_v1.json").read_text())
    for question, whole in expected.items():
        if question == "text-only":
            body = whole.partition("USER: ")[2].removesuffix(" ASSISTANT:")
            assert vicuna_v1(body, has_image=False) == whole
        else:
            assert vicuna_v1(question, has_image=True) == whole


def test_a_placeholder_in_a_question_claims_no_image():
    _, processor = load_model("demo")
    assert prompt("vicuna_v1", processor, "<image>\nIs there a star?", has_image=False).count("<image>") == 0
    assert prompt("chat_template", processor, "Is there a star?", has_image=True).count("<image>") == 1
