"""What goes into the model equals what LLaVA-1.5's own code feeds it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil

from finepruner_lmms.checkpoints.images import preprocess
from finepruner_lmms.checkpoints.load import load_model
from finepruner_lmms.checkpoints.prompts import prompt, vicuna_v1

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


def llava(picture: Image.Image) -> torch.Tensor:
    """LLaVA's own steps, spelled out: RGB by Pillow, a square of the mean colour, CLIP's preprocessing."""
    picture = picture.convert("RGB")
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in MEAN))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = np.asarray(square.resize((336, 336), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    return torch.from_numpy(((small - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1))


def picture_of(mode: str, size: tuple[int, int] = (60, 31)) -> Image.Image:
    """A picture with structure in the given mode, half of it transparent where the mode can be."""
    noise = [Image.effect_noise(size, 90) for _ in range(4)]
    if mode in ("RGBA", "CMYK"):
        return Image.merge(mode, noise)
    rgb = Image.merge("RGB", noise[:3])
    if mode == "P":
        return rgb.quantize(16)
    if mode == "transparent P":
        picture = rgb.quantize(16)
        picture.info["transparency"] = 3
        return picture
    if mode == "I;16":
        return Image.fromarray(np.asarray(noise[0]).astype(np.uint16) * 257)
    if mode == "LA":
        return Image.merge("LA", noise[:2])
    return rgb.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "transparent P", "I;16", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_pictures_of_any_mode_are_what_llava_makes_of_them(mode, tmp_path):
    picture = picture_of(mode)
    torch.testing.assert_close(preprocess(clip(), picture), llava(picture), atol=1e-5, rtol=0)
    if mode in ("L", "LA", "P", "transparent P", "I;16", "RGBA"):
        picture.save(tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as opened:
            assert opened.mode == mode.removeprefix("transparent ")
            torch.testing.assert_close(preprocess(clip(), opened), llava(picture), atol=1e-5, rtol=0)


def test_transparency_is_dropped_not_blended():
    """LLaVA's convert('RGB') shows the colour that lies under a transparent pixel."""
    clear = Image.new("RGBA", (20, 20), (250, 20, 20, 0))
    torch.testing.assert_close(preprocess(clip(), clear), preprocess(clip(), Image.new("RGB", (20, 20), (250, 20, 20))))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 3), (3, 1), (2, 700), (10_000, 10), (10, 2000)])
def test_pictures_of_any_shape_are_what_llava_makes_of_them(size):
    picture = picture_of("RGB", size)
    torch.testing.assert_close(preprocess(clip(), picture), llava(picture), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_crop_is_clips_own_preprocessing(mode):
    picture = picture_of(mode, (90, 60))
    plain = clip()(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(preprocess(clip(), picture, "crop"), plain)


@pytest.mark.parametrize("name", ["image0", "image1"])
def test_other_resampling_is_bounded(name):
    """What a build of Pillow, or torchvision, may change: less than a tenth of a standard deviation of a pixel."""
    pixels = preprocess(clip(), Image.open(GOLDEN / f"{name}.png"))
    from transformers import CLIPImageProcessor

    other = CLIPImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_mean=MEAN, image_std=DEVIATION
    )
    apart = (preprocess(other, Image.open(GOLDEN / f"{name}.png")) - pixels).abs()
    assert apart.max() < 0.1 and apart.mean() < 0.01


def test_rotation_in_exif_is_not_applied_as_in_llavas_evaluation(tmp_path):
    """But `datasets` applies it when it decodes a file, before anything here sees the picture."""
    import datasets

    picture = picture_of("RGB", (64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert opened.getexif()[0x0112] == 6
        torch.testing.assert_close(preprocess(clip(), opened), llava(opened), atol=1e-5, rtol=0)
        turned = ImageOps.exif_transpose(opened)
        assert not torch.allclose(preprocess(clip(), opened), llava(turned), atol=0.1)
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "turned.jpg")]})
    decoded = rows.cast_column("image", datasets.Image())[0]["image"]
    assert decoded.size == (32, 64) and 0x0112 not in decoded.getexif()
    torch.testing.assert_close(preprocess(clip(), decoded), llava(turned), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP"])
def test_half_a_file_is_an_error_and_not_half_a_picture(form, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval sets it
    buffer = io.BytesIO()
    picture_of("RGB", (200, 150)).save(buffer, form)
    half = Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3]))
    with pytest.raises((OSError, SyntaxError)):
        preprocess(clip(), half)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


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
