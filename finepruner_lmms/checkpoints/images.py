"""Images: from a PIL picture to what the vision tower was trained to see."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruner_lmms.checkpoints.libraries import Image, ImageFile
from finepruner_lmms.errors import FieldError, first_line
from finepruner_lmms.lazy import np, torch

if TYPE_CHECKING:
    from torch import Tensor


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
            if not image_processor.do_center_crop or _is_square(image_processor.crop_size, side):
                return _normalised(image_processor, image)
    return image_processor(image, return_tensors="pt")["pixel_values"][0].float()


def _is_square(size: Any, side: int) -> bool:
    return (size.height, size.width) == (side, side)


def _normalised(image_processor: Any, image: Image.Image) -> Tensor:
    """What the processor makes of a picture `[3, H, W]` that needs no resizing: it is asked once per colour value.

    Scaling and normalising work on each value alone, and there are only 256, so that the result is the processor's to
    the last bit, in a fraction of the time.
    """
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = Image.fromarray(np.stack([values] * 3, axis=-1))
    asked = image_processor(ramp, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"][0]
    table = np.asarray(asked, dtype=np.float32).reshape(3, 256)
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    found = np.empty(pixels.shape, np.float32)
    for colour in range(3):
        np.take(table[colour], pixels[colour], out=found[colour], mode="clip")
    return torch.from_numpy(found)


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB. `OSError` if its file ends too early, also where Pillow was told to fill up with grey."""
    with whole_files():
        return image.convert("RGB")


def read_rgb(file: str | Path, field: str = "image") -> Image.Image:
    """The picture of a file in RGB; `FieldError` of `field` where it cannot be read, or has far too many pixels."""
    try:
        with Image.open(file) as picture:
            return as_rgb(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as damaged files raise them
        raise FieldError(field, f"cannot read {str(file)!r} ({first_line(error)})", value=str(file)) from error


class _Strict:
    """Pillow's one switch for half a file, off while anyone needs it off: pictures are read in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._allowed = False

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._allowed, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._allowed


_strict = _Strict()


@contextmanager
def whole_files() -> Iterator[None]:
    """Pictures opened inside are read to their end or not at all: lmms-eval lets Pillow accept half a file."""
    _strict.enter()
    try:
        yield
    finally:
        _strict.leave()
