"""Images: from a PIL picture to what the vision tower was trained to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finepruner_lmms.checkpoints.libraries import Image, ImageFile

if TYPE_CHECKING:
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
    with); `crop`: the shorter side is resized to S and the middle cut out.

    As in LLaVA's evaluation, Pillow's `convert("RGB")` decides what a pixel of another mode is (transparency is
    dropped, not blended), and a rotation noted in EXIF is not applied. `OSError` for a file that ends too early.
    """
    image = as_rgb(image)
    if aspect_ratio == "pad":
        red, green, blue = (int(255 * mean) for mean in image_processor.image_mean)
        image = pad_to_square(image, (red, green, blue))
        if image_processor.do_resize and (side := image_processor.size.shortest_edge):
            # what the processor does too, but it copies the picture several times before
            image = image.resize((side, side), image_processor.resample)
    return image_processor(image, return_tensors="pt")["pixel_values"][0].float()


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB. `OSError` if its file ends too early, also where Pillow was told to fill up with grey."""
    with whole_files():
        return image.convert("RGB")


@contextmanager
def whole_files() -> Iterator[None]:
    """Pictures opened inside are read to their end or not at all: lmms-eval lets Pillow accept half a file."""
    allowed, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = allowed
