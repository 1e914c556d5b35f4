"""Images: from a PIL picture to what the vision tower was trained to see."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

ASPECT_RATIOS = ("pad", "crop")


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The picture in the middle of a square of its longer side, the rest filled with `color`."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def preprocess(image_processor: Any, image: Image.Image, aspect_ratio: str = "pad") -> Tensor:
    """`pixel_values` `[3, S, S]` float32 of one picture of any mode.

    `pad`: padded to a square with the mean colour first, so that nothing is cut off (what LLaVA-1.5 was trained
    with); `crop`: the shorter side is resized to S and the middle cut out. Rotation noted in EXIF is applied.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    if aspect_ratio == "pad":
        red, green, blue = (int(255 * mean) for mean in image_processor.image_mean)
        image = pad_to_square(image, (red, green, blue))
    return image_processor(image, return_tensors="pt")["pixel_values"][0].float()
